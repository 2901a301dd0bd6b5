"""Why files were skipped and pairs dropped, and notes of checkpoints, in the language of the report."""

from __future__ import annotations

import re

# What a reason is in English -> in Chinese, with its groups; others stay as they are.
IN_CHINESE = {
    r"(audio|video) file: (.*)": "{0}文件：{1}",
    r"audio": "音频",
    r"video": "视频",
    r"demo weights, trained on drawn scenes: these scores say nothing about real media": (
        "演示权重，只用绘制的场景训练：这些分数不能说明真实的媒体"
    ),
    r"No such file or directory": "没有这个文件或目录",
    r"Is a directory; .*": "是一个目录；请用 --audio_dir 和 --video_dir 搜索目录",
    r"Permission denied": "没有权限",
    r"Invalid data found when processing input": "数据无效，不能解码",
    r"the file is empty": "文件是空的",
    r"not a regular file": "不是普通文件",
    r"no (audio|video) stream": "没有{0}流",
    r"no (audio|video) frames": "没有{0}帧",
    r"no audio samples": "没有音频样本",
    r"no decoder for its (audio|video)": "没有能解码其{0}的解码器",
    r"it ends before its sound or video begins: .*": "内容还没有开始就结束了：没有写完或没有下载完",
    r"an MP4 file without its index \(moov\): .*": "MP4 文件缺少索引（moov）：没有写完或没有下载完",
    r"an HTML page, not media": "是 HTML 网页，不是媒体文件",
    r"a Git LFS pointer, not the file: git lfs pull": "是 Git LFS 指针，不是文件本身：请运行 git lfs pull",
    r"it begins with zeros, where there should be media": "开头全是零，应为媒体内容",
    r"an address, from which nothing is read; download the file": "是网址，不会从中读取；请先下载文件",
    r"needs more memory than it may have": "所需内存超过允许的上限（--worker_memory_gb）",
    r"took more than (.*) s \(--timeout\)": "用时超过 {0} 秒（--timeout）",
    r"its process .*": "读取它的进程崩溃或被终止",
    r"it changed while it was read": "读取期间文件有变化",
    r"it changed between reading sound and picture": "在读取声音与读取画面之间文件有变化",
    r"its embedding is not finite": "嵌入中有无穷大或非数",
    r"NaN or infinite samples": "样本中有无穷大或非数",
    r"mmaudio needs (\d+) frames at (.*) fps, it has (\d+)": (
        "mmaudio 在 {1} fps 下需要 {0} 帧，它只有 {2} 帧"
    ),
    r"mova needs (.*) s of sound, it has (.*) s": "mova 需要 {0} 秒的声音，它只有 {1} 秒",
    r"(\w+) needs (.*), it has (.*)": "{0} 需要 {1}，它只有 {2}",
}


def in_language(text: str, lang: str) -> str:
    """Return a reason, or several that are joined by "; ", in "zh" or "en".

    >>> in_language("video file: no video stream", "zh")
    '视频文件：没有视频流'
    """
    if lang != "zh":
        return text
    for pattern, chinese in IN_CHINESE.items():
        if match := re.fullmatch(pattern, text):
            return chinese.format(*(in_language(group, lang) for group in match.groups()))
    parts = text.split("; ")
    return "；".join(in_language(part, lang) for part in parts) if len(parts) > 1 else text
