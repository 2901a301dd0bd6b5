"""Every word of the reports and pages, in Chinese and in English."""

from __future__ import annotations

# Of consistency_report.txt. The Chinese labels are those of the user's guide, and the keys of both languages.

ENGLISH = {
    "音频-视频一致性评估报告": "Audio-video consistency report",
    "注意": "Note",
    "音频数量": "Audio files",
    "视频数量": "Video files",
    "配对数量": "Pairs",
    "相似度统计": "Similarity of all combinations",
    "平均相似度": "Mean similarity",
    "标准差": "Standard deviation",
    "配对一致性": "Similarity of pairs",
    "平均配对相似度": "Mean similarity of pairs",
    "(标准差)": "(standard deviation)",
    "最小值": "Minimum",
    "最大值": "Maximum",
    "检索性能": "Retrieval, audio to video",
    "检索性能 (视频到音频)": "Retrieval, video to audio",
    "平均排名": "Mean rank",
    "中位数排名": "Median rank",
    "视频到音频平均排名": "Video to audio, mean rank",
    "视频到音频中位数排名": "Video to audio, median rank",
    **{f"视频到音频 Recall@{k}": f"Video to audio, Recall@{k}" for k in (1, 5, 10)},
    "无": "None",
    "两侧没有相同的文件名，不知道哪些文件成对": "no file name is on both sides, so the pairs are not known",
    "每一对都有文件被跳过": "every pair lost a file that was skipped",
    "没有能够确定的配对": "no two files can be paired without doubt",
    "与不成对的组合相比": "Against mismatched combinations",
    "配对平均值的 95% 置信区间": "95% interval of the mean of pairs",
    "无 (独立的配对太少，或多数相等)": "none (too few independent pairs, or most are equal)",
    "分组": "Groups of pairs, over which intervals are computed",
    "不成对组合的平均相似度": "Mean of mismatched combinations",
    "差距": "Margin",
    "配对高于不成对组合的概率 (AUC)": "Probability that a pair is above a mismatch (AUC)",
    "召回率的 95% 置信区间 (音频到视频)": "95% interval, audio to video",
    "召回率的 95% 置信区间 (视频到音频)": "95% interval, video to audio",
    "随机水平 (音频到视频)": "By chance, audio to video",
    "随机水平 (视频到音频)": "By chance, video to audio",
    "可疑配对": "Suspects: pairs that cannot be told from mismatches",
    "配对太少，无法判断": "too few pairs to tell",
    "可疑的含义": "What suspect means",
    "含义": (
        "among the pairs that are not suspects, at most 5 % are expected to be wrong; about one wrong pair "
        "in twenty is missed; how many suspects are wrong depends on the model, and with a weak model all "
        "are suspects"
    ),
    "更好的组合": "; this audio fits the video {} better; this video fits the audio {} better",
    "更好的视频": "; this audio fits the video {} better",
    "更好的音频": "; this video fits the audio {} better",
    "其余见 pair_scores.csv": "the others are in pair_scores.csv",
    "公开评分": "Public scores",
    "没有评分": "no score",
    "计分": "{} of {} pairs",
    "未计分按 0 计": "{:.4f} where dropped pairs count as 0",
    "筛选": "Pairs that are kept",
    "阈值": "Threshold of the similarity",
    "达到阈值的配对": "Pairs that reach it",
    "其中": "{} of {}",
    "达到阈值的不成对组合": "Mismatches that would reach it",
    "写入": "Written to",
    "文本-音频一致性": "Similarity of captions and audio",
    "文本-视频一致性": "Similarity of captions and video",
    "有文本的数量": "With a caption",
    "平均值": "Mean",
    "95% 置信区间": "95% interval of the mean",
    "检索 (文本到音频)": "Retrieval, caption to audio",
    "检索 (音频到文本)": "Retrieval, audio to caption",
    "检索 (文本到视频)": "Retrieval, caption to video",
    "检索 (视频到文本)": "Retrieval, video to caption",
    "随机水平 (文本到音频)": "By chance, caption to audio",
    "随机水平 (音频到文本)": "By chance, audio to caption",
    "随机水平 (文本到视频)": "By chance, caption to video",
    "随机水平 (视频到文本)": "By chance, video to caption",
    "没有文本属于它们": "no caption belongs to one of them",
    "排名": "mean rank {:.2f}, median rank {:.2f}",
    "文本": "Captions",
    "文本数量": "With a row",
    "没有对应文件": "Belonging to nothing",
    "无法使用的行": "Rows that could not be used",
    "过长而被截断": "Too long, cut off",
    "没有文本的配对": "Pairs without a caption",
    "文本输入": "Text input",
    "其他文件": "Other files",
    "无配对，已忽略": "Without a partner, ignored",
    "无配对，作为干扰项": "Without a partner, kept as distractors",
    "跳过": "Skipped",
    "清单中无法使用的行": "Rows of the manifest that could not be used",
    "其余见 metrics.json": "the others are in metrics.json",
    "计算方式": "How it was computed",
    "模式": "Mode",
    "pairing": "pairing",
    "retrieval": "retrieval",
    "pairs_only": "pairs alone, against sampled mismatches",
    "配对依据": "Pairs by",
    "stem": "file name",
    "position": "position in the two lists",
    "file": "file, each with its own sound",
    "manifest": "manifest",
    "none": "nothing",
    "模型权重": "Checkpoint",
    "精度与设备": "Precision and device",
    "音频输入": "Audio input",
    "视频输入": "Video input",
    "软件版本": "Versions",
}
CHINESE = {
    **{text: text for text in ENGLISH},
    "排名": "平均排名 {:.2f}, 中位数排名 {:.2f}",
    "含义": (
        "在非可疑的配对中，预期有错的不超过 5 %；大约每二十个错误配对会漏掉一个；"
        "可疑配对中有多少确实有错取决于模型，模型很弱时所有配对都可疑"
    ),
    "更好的组合": "；此音频与视频 {} 更相似；此视频与音频 {} 更相似",
    "更好的视频": "；此音频与视频 {} 更相似",
    "更好的音频": "；此视频与音频 {} 更相似",
    "计分": "计分 {} / {} 对",
    "其中": "{} / {}",
    "未计分按 0 计": "未计分的配对按 0 计则为 {:.4f}",
    "pairing": "配对模式",
    "retrieval": "检索模式",
    "pairs_only": "仅配对，与抽样的不成对组合相比",
    "stem": "文件名",
    "position": "两个列表中的位置",
    "file": "同一文件的声音与画面",
    "manifest": "清单",
    "none": "无",
}
REPORT_WORDS = {"zh": CHINESE, "en": ENGLISH}

# Of report.html and comparison.html

PAGE_WORDS = {
    "en": {
        "report": "Audio-video consistency report",
        "comparison": "Comparison of systems",
        "noscript": "This page is drawn by a script, which this browser does not run.",
        "table": "table",
        "rows": "{n} of {all}",
        "suspects only": "suspects only",
        "thumbnails": "seen and heard",
        "frames": "three frames of the video",
        "spectrogram": "spectrogram of the sound",
        "play": "play",
        "plays with": "plays with",
        "judged sound": "the sound below",
        "own sound": "the video's own sound",
        "unplayable": (
            "{file} cannot be played here: it has moved, or this browser does not play {format} files of its "
            "kind; --copy_media writes copies that play"
        ),
        "weakest": "weakest:",
        "other windows": "other windows",
        "jump to weakest": "play from the weakest window on",
        "link to pair": "link to this pair",
        "other matches": "Best other matches",
        "better video": "This audio fits the video {name} better: {similarity}",
        "next video": "Of the other videos, {name} fits this audio best: {similarity}",
        "better audio": "This video fits the audio {name} better: {similarity}",
        "next audio": "Of the other sounds, {name} fits this video best: {similarity}",
        "best match": "most similar video",
        "match table": "Best matches",
        "match table how": (
            "No pairs are known: each sound with the video that is the most similar to it, the most similar "
            "first. A click on a name opens the two."
        ),
        "heat map without pairs how": (
            "A row for each sound, a column for each video; which belong together is not known. A bright row "
            "or column is a file that resembles everything. The pointer, or the arrow keys, name the two "
            "files; a click, or Enter, plays them."
        ),
        "filter": "search",
        "nothing": "nothing found",
        "share": "share",
        "cosine": "similarity (cosine)",
        "pairs": "pairs",
        "mismatched": "mismatched combinations",
        "audio": "audio",
        "video": "video",
        "audio_to_video": "audio to video",
        "video_to_audio": "video to audio",
        "text_to_audio": "caption to audio",
        "audio_to_text": "audio to caption",
        "text_to_video": "caption to video",
        "video_to_text": "video to caption",
        "text_audio": "Captions and audio",
        "text_video": "Captions and video",
        "mean of text_audio": "caption and its audio",
        "mean of text_video": "caption and its video",
        "text how": (
            "How similar captions and what they belong to are, over the other combinations of the two."
        ),
        "text recall how": "How often each is among the K most similar ones of the other.",
        "text columns": (
            *("caption", "caption of the audio", "caption-audio", "caption-video"),
            *("audio rank for the caption", "video rank for the caption"),
        ),
        "chance": "by chance",
        "yes": "yes",
        "no": "no",
        "mean of pairs": "mean of pairs",
        "mean of mismatches": "mean of mismatches",
        "interval": "95% interval {}",
        "deviation": "standard deviation {:.4f}",
        "auc": "pair above mismatch (AUC)",
        "of chance": "by chance {:.4f}",
        "suspects": "suspects",
        "too few": "too few pairs to tell",
        "of pairs": "of {} pairs",
        "evaluated": "pairs evaluated",
        "left out": "{} files skipped, {} without a partner",
        "histogram": "Pairs and mismatches",
        "histogram how": (
            "How similar the pairs are, over combinations of a sound and a video that are no pair; "
            "each as shares of its own. The less the two overlap, the more a score says. A similarity "
            "means something only against the mismatches of the same run."
        ),
        "heat map": "Similarity matrix",
        "heat map how": (
            "A row for each sound, a column for each video, pairs first: the diagonal are the pairs. A "
            "bright diagonal on a dark ground is what a consistent set looks like; a bright row or "
            "column is a file that resembles everything. The pointer, or the arrow keys, name the two "
            "files; a click, or Enter, plays them."
        ),
        "sample": "Shown is a sample: {} of {} audio files, {} of {} video files.",
        "recall": "Recall@K",
        "recall how": (
            "The share of sounds whose own video is among the K most similar ones, and the other way "
            "round. By chance it is the dashed line; compare it only between sets of one size."
        ),
        "pair table": "Pair by pair",
        "pair table how": (
            "Suspects first, then the least similar; a click on a heading sorts, and one on a name opens the "
            "pair. "
            "Percentile: the share of the mismatches in the pair's own row and column that are less similar. "
            "Clips alike: 1 where all clips of a file are equal. A suspect cannot be told from a mismatch: "
            "a pair to look at, not a fault found. Among the pairs that are not suspects, at most 5 % are "
            "expected to be wrong. About one wrong pair in twenty is missed. How many suspects are wrong "
            "depends on the model, and with a weak model all are suspects."
        ),
        "ranks how": (
            "Rank: the place of the own video among all videos that do not belong to the sound as well, and "
            "of the own sound likewise; 1 is best."
        ),
        "sampled": "The mismatches are a sample of {}.",
        "least": "Shown are the first {} of {} pairs; all are in pair_scores.csv.",
        "columns": (
            *("name", "similarity", "suspect", "video rank", "audio rank", "percentile", "p-value"),
            *("audio clips alike", "video clips alike", "best other video", "best other audio"),
            *("audio", "video"),
        ),
        "scored": "{} of {} pairs",
        "dropped": "Pairs without a score",
        "dropped how": "These pairs are left out of the mean of that score, and stay in the others.",
        "dropped columns": ("score", "pair", "reason"),
        "over time": "over time",
        "over time how": (
            "Over time: JavisScore's windows of 2 s, the higher the more similar; the weakest is red, and a "
            "click plays the pair from there; one whose sound is digital silence is hollow."
        ),
        "window": "{start}–{end} s: {score}",
        "silent": "silent",
        "skipped": "Skipped files",
        "skipped how": "These files have no row, and their pairs are in no figure.",
        "skipped columns": ("side", "file", "reason"),
        "all figures": "All figures, and how they were computed",
        "systems": "Systems",
        "systems how": (
            "Recall@K is comparable only between sets of one size; suspects are pairs that cannot be "
            "told from a mismatch."
        ),
        "means": "Mean of pairs",
        "means how": "The mean similarity of each system's pairs with its 95% interval.",
        "outlines": "Similarities of pairs",
        "outlines how": (
            "How the similarities of each system's pairs are distributed: the box holds the middle half, its "
            "line is the median, the whiskers reach from 5 to 95 %, and the dashed line is the mean."
        ),
        "leaderboard": "Leaderboard",
        "leaderboard how": (
            "The highest mean first, with its 95% interval as a bar; a column for each other score. A click "
            "on a name opens the page of that run."
        ),
        "95 %": "95% interval",
        "pair": "pair",
        "duels": "Pair by pair",
        "duels how": (
            "The pairs that both systems have, the largest differences first. A point is a pair: above the "
            "line the first system is better. A click on a point, or on a name, plays both."
        ),
        "duels cut": (
            "Shown are the {} largest differences of every two systems; all are in comparison_pairs.csv."
        ),
        "which two": "which two systems",
        "differences": "Differences",
        "differences how": (
            "For every two systems the mean difference on the pairs that both have, with its 95% interval "
            "and its p-value. Where the interval holds 0, no difference can be told. Where several systems "
            "are compared, look at the p-value that is corrected for their number (Holm): a difference can "
            "be told where it is below 0.05. Wins: the share of pairs on which the first system is better; "
            "ties count half. There is no interval where the pairs are too few or most differences are equal."
        ),
        "difference": "difference",
        "difference on common": "Difference on the pairs that both have",
        "no pairs": "No two systems have a pair in common.",
        "system": "system",
        "minus": "minus",
        "mean": "mean",
        "low": "95% low",
        "high": "95% high",
        "p_value": "p",
        "p_value_holm": "p (Holm)",
        "win_rate": "wins",
        "win_rate_low": "wins, 95% low",
        "win_rate_high": "wins, 95% high",
        "skipped files": "skipped",
        "different": "The runs were computed in different ways: {}",
    },
    "zh": {
        "report": "音频-视频一致性评估报告",
        "comparison": "系统比较",
        "noscript": "本页由脚本绘制，而此浏览器不运行脚本。",
        "table": "表格",
        "rows": "{n} / {all}",
        "suspects only": "只看可疑配对",
        "thumbnails": "画面与声音",
        "frames": "视频的三帧",
        "spectrogram": "声音的频谱图",
        "play": "播放",
        "plays with": "播放时使用",
        "judged sound": "下方的声音",
        "own sound": "视频自带的声音",
        "unplayable": (
            "{file} 无法在此播放：文件已移动，或此浏览器不能播放这种 {format} 文件；--copy_media 会写出可播放"
            "的副本"
        ),
        "weakest": "最弱：",
        "other windows": "其他窗口",
        "jump to weakest": "从最弱的窗口开始播放",
        "link to pair": "此配对的链接",
        "other matches": "最佳的其他匹配",
        "better video": "此音频与视频 {name} 更相似：{similarity}",
        "next video": "其他视频中与此音频最相似的是 {name}：{similarity}",
        "better audio": "此视频与音频 {name} 更相似：{similarity}",
        "next audio": "其他音频中与此视频最相似的是 {name}：{similarity}",
        "best match": "最相似的视频",
        "match table": "最佳匹配",
        "match table how": "配对未知：每个音频及与其最相似的视频，最相似的在前。点击名称可打开两者。",
        "heat map without pairs how": (
            "每行一个音频，每列一个视频；哪些成对未知。整行或整列偏亮，说明该文件与什么都相似。鼠标或方向键会显示"
            "两个文件的名称；点击或按回车键即可播放。"
        ),
        "filter": "搜索",
        "nothing": "没有找到",
        "share": "占比",
        "cosine": "相似度（余弦）",
        "pairs": "成对",
        "mismatched": "不成对的组合",
        "audio": "音频",
        "video": "视频",
        "audio_to_video": "音频到视频",
        "video_to_audio": "视频到音频",
        "text_to_audio": "文本到音频",
        "audio_to_text": "音频到文本",
        "text_to_video": "文本到视频",
        "video_to_text": "视频到文本",
        "text_audio": "文本与音频",
        "text_video": "文本与视频",
        "mean of text_audio": "文本与其音频",
        "mean of text_video": "文本与其视频",
        "text how": ("各文本与其所属文件的相似度，与两者其他组合的相似度重叠显示。"),
        "text recall how": "各自排在对方最相似的前 K 个之内的比例。",
        "text columns": ("文本", "音频的文本", "文本-音频", "文本-视频", "文本的音频排名", "文本的视频排名"),
        "chance": "随机水平",
        "yes": "是",
        "no": "否",
        "mean of pairs": "平均配对相似度",
        "mean of mismatches": "不成对组合的平均值",
        "interval": "95% 置信区间 {}",
        "deviation": "标准差 {:.4f}",
        "auc": "配对高于不成对 (AUC)",
        "of chance": "随机水平 {:.4f}",
        "suspects": "可疑配对",
        "too few": "配对太少，无法判断",
        "of pairs": "共 {} 对",
        "evaluated": "已评估的配对",
        "left out": "跳过 {} 个文件，{} 个没有配对",
        "histogram": "成对与不成对",
        "histogram how": (
            "各配对的相似度，与不成对的音频-视频组合的相似度重叠显示，各自按占比计。两者重叠越少，分"
            "数越能说明问题。相似度只有与同一次运行中不成对的组合相比才有意义。"
        ),
        "heat map": "相似度矩阵",
        "heat map how": (
            "每行一个音频，每列一个视频，配对在前：对角线即各配对。一致性好的数据集是暗底上的亮对角线；整"
            "行或整列偏亮，说明该文件与什么都相似。鼠标或方向键会显示两个文件的名称；点击或按回车键即可播放。"
        ),
        "sample": "此处为抽样：{}/{} 个音频文件，{}/{} 个视频文件。",
        "recall": "Recall@K",
        "recall how": (
            "自身视频排在最相似的前 K 个之内的音频所占比例，以及反方向的比例。虚线为随机水平；只能在大小"
            "相同的集合之间比较。"
        ),
        "pair table": "逐对查看",
        "pair table how": (
            "可疑配对在前，其后相似度最低的在前；点击表头可排序，点击名称可打开该配对。"
            "百分位：同一行和同一列中相似度低于该配对的不成对组合所占比例。"
            "片段相似：文件的各片段完全相同时为 1。"
            "可疑配对与不成对的组合无法区分：需要人工查看，并不等于有错。"
            "在非可疑的配对中，预期有错的不超过 5 %。大约每二十个错误配对会漏掉一个。"
            "可疑配对中有多少确实有错取决于模型，模型很弱时所有配对都可疑。"
        ),
        "ranks how": "排名：自身视频在不属于该音频的所有视频中的名次，以及自身音频的相应名次，1 为最好。",
        "sampled": "不成对的组合为抽样，共 {} 个。",
        "least": "此处为前 {} 个配对，共 {} 对；全部见 pair_scores.csv。",
        "columns": (
            *("名称", "相似度", "可疑", "视频排名", "音频排名", "百分位", "p 值"),
            *("音频片段相似", "视频片段相似", "最相似的其他视频", "最相似的其他音频"),
            *("音频", "视频"),
        ),
        "scored": "计分 {} / {} 对",
        "dropped": "没有评分的配对",
        "dropped how": "这些配对不计入该评分的平均值，仍计入其他评分。",
        "dropped columns": ("评分", "配对", "原因"),
        "over time": "随时间",
        "over time how": (
            "随时间：JavisScore 的 2 秒窗口，越高越相似；最弱的为红色，点击即从该处播放；"
            "声音为数字静音的窗口为空心。该列按最弱的窗口排序。"
        ),
        "window": "{start}–{end} 秒：{score}",
        "silent": "静音",
        "skipped": "跳过的文件",
        "skipped how": "这些文件没有嵌入，其配对不计入任何指标。",
        "skipped columns": ("类别", "文件", "原因"),
        "all figures": "全部指标与计算方式",
        "systems": "各系统",
        "systems how": "Recall@K 只能在大小相同的集合之间比较；可疑配对是与不成对的组合无法区分的配对。",
        "means": "平均配对相似度",
        "means how": "各系统配对的平均相似度，以及 95% 置信区间。",
        "outlines": "配对相似度的分布",
        "outlines how": (
            "各系统配对相似度的分布：方框为中间一半，框内的线为中位数，须从 5 % 到 95 %，虚线为平均值。"
        ),
        "leaderboard": "排行榜",
        "leaderboard how": (
            "平均值最高的在前，横条为其 95% 置信区间；其他评分各占一列。点击名称可打开该次运行的报告页。"
        ),
        "95 %": "95% 置信区间",
        "pair": "配对",
        "duels": "逐对比较",
        "duels how": (
            "两个系统共有的配对，差异最大的在前。每个点是一个配对：位于线上方表示第一个系统更好。点击点或名称"
            "可播放两者。"
        ),
        "duels cut": "此处为每两个系统差异最大的 {} 对；全部见 comparison_pairs.csv。",
        "which two": "比较哪两个系统",
        "differences": "差异",
        "differences how": (
            "每两个系统在共有配对上的平均差，以及 95% 置信区间与 p 值。区间含 0 时，无法断定有差异。"
            "比较多个系统时，请看按其数目校正的 p 值 (Holm)：低于 0.05 时可断定有差异。"
            "胜率：前一系统更好的配对所占比例，相等时计一半。配对太少或多数差相等时没有置信区间。"
        ),
        "difference": "差",
        "difference on common": "共有配对上的差",
        "no pairs": "没有两个系统含有共同的配对。",
        "system": "系统",
        "minus": "减去",
        "mean": "平均值",
        "low": "95% 下限",
        "high": "95% 上限",
        "p_value": "p",
        "p_value_holm": "p (Holm)",
        "win_rate": "胜率",
        "win_rate_low": "胜率 95% 下限",
        "win_rate_high": "胜率 95% 上限",
        "skipped files": "跳过",
        "different": "各次运行的计算方式不同：{}",
    },
}
