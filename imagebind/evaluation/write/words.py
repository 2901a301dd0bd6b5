"""Every word of report.html and comparison.html: key -> English and Chinese."""

from __future__ import annotations

PAGE = {
    "report": ("Audio-video consistency report", "音频-视频一致性评估报告"),
    "comparison": ("Comparison of systems", "系统比较"),
    "noscript": (
        "This page is drawn by a script, which this browser does not run.",
        "本页由脚本绘制，而此浏览器不运行脚本。",
    ),
    "table": ("table", "表格"),
    "rows": ("{n} of {all}", "{n} / {all}"),
    "suspects only": ("suspects only", "只看可疑配对"),
    "thumbnails": ("seen and heard", "画面与声音"),
    "frames": ("three frames of the video", "视频的三帧"),
    "spectrogram": ("spectrogram of the sound", "声音的频谱图"),
    "play": ("play", "播放"),
    "plays with": ("plays with", "播放时使用"),
    "judged sound": ("the sound below", "下方的声音"),
    "own sound": ("the video's own sound", "视频自带的声音"),
    "unplayable": (
        "{file} cannot be played here: it has moved, or this browser does not play {format} files of its "
        "kind; --copy_media writes copies that play",
        "{file} 无法在此播放：文件已移动，或此浏览器不能播放这种 {format} 文件；--copy_media 会写出可播放的"
        "副本",
    ),
    "no file": (
        "Of {file} the embedding alone is known; there is no file to play.",
        "{file} 只有嵌入，没有可播放的文件。",
    ),
    "weakest": ("weakest:", "最弱："),
    "other windows": ("other windows", "其他窗口"),
    "jump to weakest": ("play from the weakest window on", "从最弱的窗口开始播放"),
    "link to pair": ("link to this pair", "此配对的链接"),
    "other matches": ("Best other matches", "最佳的其他匹配"),
    "better video": (
        "This audio fits the video {name} better: {similarity}",
        "此音频与视频 {name} 更相似：{similarity}",
    ),
    "next video": (
        "Of the other videos, {name} fits this audio best: {similarity}",
        "其他视频中与此音频最相似的是 {name}：{similarity}",
    ),
    "better audio": (
        "This video fits the audio {name} better: {similarity}",
        "此视频与音频 {name} 更相似：{similarity}",
    ),
    "next audio": (
        "Of the other sounds, {name} fits this video best: {similarity}",
        "其他音频中与此视频最相似的是 {name}：{similarity}",
    ),
    "best match": ("most similar video", "最相似的视频"),
    "match table": ("Best matches", "最佳匹配"),
    "match table how": (
        "No pairs are known: each sound with the video that is the most similar to it, the most similar "
        "first. A click on a name opens the two.",
        "配对未知：每个音频及与其最相似的视频，最相似的在前。点击名称可打开两者。",
    ),
    "heat map without pairs how": (
        "A row for each sound, a column for each video; which belong together is not known. A bright row or "
        "column is a file that resembles everything. The pointer, or the arrow keys, name the two files; a "
        "click, or Enter, plays them.",
        "每行一个音频，每列一个视频；哪些成对未知。整行或整列偏亮，说明该文件与什么都相似。鼠标或方向键会显"
        "示两个文件的名称；点击或按回车键即可播放。",
    ),
    "filter": ("search", "搜索"),
    "nothing": ("nothing found", "没有找到"),
    "share": ("share", "占比"),
    "cosine": ("similarity (cosine)", "相似度（余弦）"),
    "pairs": ("pairs", "成对"),
    "mismatched": ("mismatched combinations", "不成对的组合"),
    "audio": ("audio", "音频"),
    "video": ("video", "视频"),
    "audio_to_video": ("audio to video", "音频到视频"),
    "video_to_audio": ("video to audio", "视频到音频"),
    "text_to_audio": ("caption to audio", "文本到音频"),
    "audio_to_text": ("audio to caption", "音频到文本"),
    "text_to_video": ("caption to video", "文本到视频"),
    "video_to_text": ("video to caption", "视频到文本"),
    "text_audio": ("Captions and audio", "文本与音频"),
    "text_video": ("Captions and video", "文本与视频"),
    "mean of text_audio": ("caption and its audio", "文本与其音频"),
    "mean of text_video": ("caption and its video", "文本与其视频"),
    "text how": (
        "How similar captions and what they belong to are, over the other combinations of the two.",
        "各文本与其所属文件的相似度，与两者其他组合的相似度重叠显示。",
    ),
    "text recall how": (
        "How often each is among the K most similar ones of the other.",
        "各自排在对方最相似的前 K 个之内的比例。",
    ),
    "text columns": (
        (
            *("caption", "caption of the audio", "caption-audio", "caption-video"),
            *("audio rank for the caption", "video rank for the caption"),
        ),
        ("文本", "音频的文本", "文本-音频", "文本-视频", "文本的音频排名", "文本的视频排名"),
    ),
    "chance": ("by chance", "随机水平"),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "mean of pairs": ("mean of pairs", "平均配对相似度"),
    "mean of mismatches": ("mean of mismatches", "不成对组合的平均值"),
    "interval": ("95% interval {}", "95% 置信区间 {}"),
    "deviation": ("standard deviation {:.4f}", "标准差 {:.4f}"),
    "auc": ("pair above mismatch (AUC)", "配对高于不成对 (AUC)"),
    "of chance": ("by chance {:.4f}", "随机水平 {:.4f}"),
    "suspects": ("suspects", "可疑配对"),
    "too few": ("too few pairs to tell", "配对太少，无法判断"),
    "of pairs": ("of {} pairs", "共 {} 对"),
    "flagged": ("pairs with a flagged file", "含有标记文件的配对"),
    "evaluated": ("pairs evaluated", "已评估的配对"),
    "left out": ("{} files skipped, {} without a partner", "跳过 {} 个文件，{} 个没有配对"),
    "histogram": ("Pairs and mismatches", "成对与不成对"),
    "histogram how": (
        "How similar the pairs are, over combinations of a sound and a video that are no pair; each as "
        "shares of its own. The less the two overlap, the more a score says. A similarity means something "
        "only against the mismatches of the same run.",
        "各配对的相似度，与不成对的音频-视频组合的相似度重叠显示，各自按占比计。两者重叠越少，分数越能说明问"
        "题。相似度只有与同一次运行中不成对的组合相比才有意义。",
    ),
    "heat map": ("Similarity matrix", "相似度矩阵"),
    "heat map how": (
        "A row for each sound, a column for each video, pairs first: the diagonal are the pairs. A bright "
        "diagonal on a dark ground is what a consistent set looks like; a bright row or column is a file "
        "that resembles everything. The pointer, or the arrow keys, name the two files; a click, or Enter, "
        "plays them.",
        "每行一个音频，每列一个视频，配对在前：对角线即各配对。一致性好的数据集是暗底上的亮对角线；整行或整"
        "列偏亮，说明该文件与什么都相似。鼠标或方向键会显示两个文件的名称；点击或按回车键即可播放。",
    ),
    "sample": (
        "Shown is a sample: {} of {} audio files, {} of {} video files.",
        "此处为抽样：{}/{} 个音频文件，{}/{} 个视频文件。",
    ),
    "recall": ("Recall@K", "Recall@K"),
    "recall how": (
        "The share of sounds whose own video is among the K most similar ones, and the other way round. By "
        "chance it is the dashed line; compare it only between sets of one size.",
        "自身视频排在最相似的前 K 个之内的音频所占比例，以及反方向的比例。虚线为随机水平；只能在大小相同的集"
        "合之间比较。",
    ),
    "categories": ("By category", "按类别"),
    "categories how": (
        "The mean similarity of each category's pairs with its 95% interval; the dashed line is the mean of "
        "all pairs.",
        "各类别配对的平均相似度，以及 95% 置信区间；虚线为全部配对的平均值。",
    ),
    "group": ("group", "分组"),
    "copy_of": ("copy of", "内容相同于"),
    "category": ("category", "类别"),
    "pair table": ("Pair by pair", "逐对查看"),
    "pair table how": (
        "Suspects first, then the least similar; a click on a heading sorts, and one on a name opens the "
        "pair. Percentile: the share of the mismatches in the pair's own row and column that are less "
        "similar. Clips alike: 1 where all clips of a file are equal. A suspect cannot be told from a "
        "mismatch: a pair to look at, not a fault found. If wrong pairs are like random mismatches, at most "
        "5 % of the pairs that are not suspects are expected to be wrong, and about one wrong pair in twenty "
        "is missed; of pairs swapped within a kind more are. How many suspects are wrong depends on the "
        "model, and with a weak model all are suspects.",
        "可疑配对在前，其后相似度最低的在前；点击表头可排序，点击名称可打开该配对。百分位：同一行和同一列中"
        "相似度低于该配对的不成对组合所占比例。片段相似：文件的各片段完全相同时为 1。可疑配对与不成对的组合"
        "无法区分：需要人工查看，并不等于有错。若错误的配对与随机的不成对组合相当，则在非可疑的配对中预期有"
        "错的不超过 5 %，大约每二十个错误配对会漏掉一个；同类之间的调换会漏掉更多。可疑配对中有多少确实有错"
        "取决于模型，模型很弱时所有配对都可疑。",
    ),
    "ranks how": (
        "Rank: the place of the own video among all videos that do not belong to the sound as well, and of "
        "the own sound likewise; 1 is best.",
        "排名：自身视频在不属于该音频的所有视频中的名次，以及自身音频的相应名次，1 为最好。",
    ),
    "sampled": ("The mismatches are a sample of {}.", "不成对的组合为抽样，共 {} 个。"),
    "least": (
        "Shown are the first {} of {} pairs; all are in pair_scores.csv.",
        "此处为前 {} 个配对，共 {} 对；全部见 pair_scores.csv。",
    ),
    "columns": (
        (
            *("name", "similarity", "suspect", "video rank", "audio rank", "percentile", "p-value"),
            *("audio clips alike", "video clips alike", "video flags", "audio flags"),
            *("best other video", "best other audio", "audio", "video"),
        ),
        (
            *("名称", "相似度", "可疑", "视频排名", "音频排名", "百分位", "p 值", "音频片段相似"),
            *("视频片段相似", "视频标记", "音频标记", "最相似的其他视频", "最相似的其他音频", "音频", "视频"),
        ),
    ),
    "scored": ("{} of {} pairs", "计分 {} / {} 对"),
    "dropped": ("Pairs without a score", "没有分数的配对"),
    "dropped how": (
        "These pairs are left out of the mean of that score, and stay in the others.",
        "这些配对不计入该分数的平均值，仍计入其他分数。",
    ),
    "dropped columns": (
        ("score", "pair", "reason"),
        ("分数", "配对", "原因"),
    ),
    "flag black": ("black", "黑屏"),
    "flag still": ("still", "静止"),
    "flag silent": ("silent", "静音"),
    "flag clipped": ("clipped", "削波"),
    "flag unknown": ("unknown", "未知"),
    "over time": ("over time", "随时间"),
    "over time how": (
        "Over time: JavisScore's windows of 2 s, the higher the more similar; the weakest is red, and a "
        "click plays the pair from there; one whose sound is digital silence is hollow.",
        "随时间：JavisScore 的 2 秒窗口，越高越相似；最弱的为红色，点击即从该处播放；声音为数字静音的窗口为"
        "空心。该列按最弱的窗口排序。",
    ),
    "window": ("{start}–{end} s: {score}", "{start}–{end} 秒：{score}"),
    "silent": ("silent", "静音"),
    "skipped": ("Skipped files", "跳过的文件"),
    "skipped how": (
        "These files have no row, and their pairs are in no figure.",
        "这些文件没有嵌入，其配对不计入任何指标。",
    ),
    "skipped columns": (
        ("side", "file", "reason"),
        ("类别", "文件", "原因"),
    ),
    "all figures": ("All figures, and how they were computed", "全部指标与计算方式"),
    "systems": ("Systems", "各系统"),
    "systems how": (
        "Recall@K is comparable only between sets of one size; suspects are pairs that cannot be told from "
        "a mismatch.",
        "Recall@K 只能在大小相同的集合之间比较；可疑配对是与不成对的组合无法区分的配对。",
    ),
    "means": ("Mean of pairs", "平均配对相似度"),
    "means how": (
        "The mean similarity of each system's pairs with its 95% interval.",
        "各系统配对的平均相似度，以及 95% 置信区间。",
    ),
    "outlines": ("Similarities of pairs", "配对相似度的分布"),
    "outlines how": (
        "How the similarities of each system's pairs are distributed: the box holds the middle half, its "
        "line is the median, the whiskers reach from 5 to 95 %, and the dashed line is the mean.",
        "各系统配对相似度的分布：方框为中间一半，框内的线为中位数，须从 5 % 到 95 %，虚线为平均值。",
    ),
    "leaderboard": ("Leaderboard", "排行榜"),
    "leaderboard how": (
        "Ordered by the mean of what all systems have in common, with its 95% interval as a bar; beside it "
        "the mean of all pairs of each system, and how many it lacks that another one has; a column for "
        "each other score. A click on a name opens the page of that run.",
        "按所有系统共有的配对的平均值排序，横条为其 95% 置信区间；旁边是每个系统自身全部配对的平均值，以及它"
        "缺少而其他系统具有的配对数；其他分数各占一列。点击名称可打开该次运行的报告页。",
    ),
    "95 %": ("95% interval", "95% 置信区间"),
    "pair": ("pair", "配对"),
    "duels": ("Pair by pair", "逐对比较"),
    "duels how": (
        "The pairs that both systems have, the largest differences first. A point is a pair: above the line "
        "the first system is better. A click on a point, or on a name, plays both.",
        "两个系统共有的配对，差异最大的在前。每个点是一个配对：位于线上方表示第一个系统更好。点击点或名称可"
        "播放两者。",
    ),
    "duels means": (
        "Behind a name (5:1) says that the mean of five pairs of the first system is compared with one of "
        "the second; the first of each play.",
        "名称后的 (5:1) 表示以第一个系统五个配对的平均值与第二个系统的一个相比；播放的是各自的第一个。",
    ),
    "duels cut": (
        "Shown are the {} largest differences of every two systems; all are in comparison_pairs.csv.",
        "此处为每两个系统差异最大的 {} 对；全部见 comparison_pairs.csv。",
    ),
    "which two": ("which two systems", "比较哪两个系统"),
    "differences": ("Differences", "差异"),
    "differences how": (
        "For every two systems the mean difference on the pairs that both have, with its 95% interval and "
        "its p-value. Where the interval holds 0, no difference can be told. Where several systems are "
        "compared, look at the p-value that is corrected for their number (Holm): a difference can be told "
        "where it is below 0.05. Wins: the share of pairs on which the first system is better; ties count "
        "half. There is no interval where the pairs are too few or most differences are equal.",
        "每两个系统在共有配对上的平均差，以及 95% 置信区间与 p 值。区间含 0 时，无法断定有差异。比较多个系统"
        "时，请看按其数目校正的 p 值 (Holm)：低于 0.05 时可断定有差异。胜率：前一系统更好的配对所占比例，相"
        "等时计一半。配对太少或多数差相等时没有置信区间。",
    ),
    "difference": ("difference", "差"),
    "difference on common": ("Difference on the pairs that both have", "共有配对上的差"),
    "no pairs": ("No two systems have a pair in common.", "没有两个系统含有共同的配对。"),
    "system": ("system", "系统"),
    "minus": ("minus", "减去"),
    "mean": ("mean", "平均值"),
    "low": ("95% low", "95% 下限"),
    "high": ("95% high", "95% 上限"),
    "common_pairs": ("in all", "共有配对"),
    "common_mean": ("mean in all", "共有平均值"),
    "common_low": ("in all, 95% low", "共有 95% 下限"),
    "common_high": ("in all, 95% high", "共有 95% 上限"),
    "lacks": ("lacks", "缺少"),
    "seeds": ("seeds", "种子数"),
    "seed_std": ("sd over seeds", "种子间标准差"),
    "category_mean": ("mean of the categories", "各类别平均"),
    "by category": ("By category", "按类别"),
    "by category how": (
        "The mean similarity of each system's pairs of each category with its 95% interval.",
        "各系统在各类别中配对的平均相似度，以及 95% 置信区间。",
    ),
    "category means": ("Means of the categories", "各类别的平均值"),
    "category means how": (
        "The same as a table; last the mean of these means, in which each category counts as much.",
        "以表格列出；最后是这些平均值的平均，各类别的权重相同。",
    ),
    "place": ("place", "位置"),
    "place_low": ("place, 95% low", "位置 95% 下限"),
    "place_high": ("place, 95% high", "位置 95% 上限"),
    "place, 95 %": ("place, 95% interval", "位置的 95% 置信区间"),
    "place how": (
        "Place: 0 is the mean of the mismatches of {0}, 1 that of its pairs.",
        "位置：0 为 {0} 的不成对组合的平均值，1 为其配对的平均值。",
    ),
    "p_value": ("p", "p"),
    "p_value_holm": ("p (Holm)", "p (Holm)"),
    "win_rate": ("wins", "胜率"),
    "win_rate_low": ("wins, 95% low", "胜率 95% 下限"),
    "win_rate_high": ("wins, 95% high", "胜率 95% 上限"),
    "skipped files": ("skipped", "跳过"),
    "different": ("The runs were computed in different ways: {}", "各次运行的计算方式不同：{}"),
}

PAGE_WORDS = {  # language -> key -> text
    language: {key: texts[i] for key, texts in PAGE.items()} for i, language in enumerate(("en", "zh"))
}
