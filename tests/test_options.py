"""Options: one default and one rule for each, whichever way they are given."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from batch_inference import OptionError, Options, batch_inference_av_consistency, build_parser, main

INPUTS = ("audio_paths", "video_paths")
WRONG = [  # name, value of the function, text of the command line, what both say
    ("batch_size", 0, "0", "must be a whole number from 1 to 4096"),
    ("batch_size", 4097, "1000000000", "must be a whole number from 1 to 4096"),
    ("batch_size", "4", "x", "must be a whole number from 1 to 4096"),
    ("batch_size", True, "1.5", "must be a whole number from 1 to 4096"),
    ("batch_size", None, "", "must be a whole number from 1 to 4096"),
    ("num_workers", -1, "-1", "must be a whole number from 0 to 1024"),
    ("timeout", 0, "0", "must be a number from 0.001 to 1000000"),
    ("timeout", float("nan"), "nan", "must be a number from 0.001 to 1000000"),
    ("timeout", float("inf"), "99999999999", "must be a number from 0.001 to 1000000"),
    ("worker_memory_gb", 0, "10000000000", "must be a number from 0.001 to 100000"),
    ("max_matrix_gb", -1, "-1", "must be a number from 0 to 1000000"),
    ("seed", -1, "-1", "must be a whole number from 0 to 4294967295"),
    ("device", "gpu", "gpu", "must be a device such as cuda:0 or cpu"),
    ("precision", "int8", "int8", "must be one of auto, fp32, tf32, bf16, fp16"),
    ("report_lang", "fr", "fr", "must be one of zh, en"),
    ("captions", "x.txt", "x.txt", "must be a .csv, .tsv or .jsonl file"),
]


@pytest.mark.parametrize(("name", "value", "text", "sentence"), WRONG)
def test_a_wrong_value_is_named_as_the_caller_wrote_it(name, value, text, sentence, capsys):
    with pytest.raises(OptionError) as caught:
        batch_inference_av_consistency(None, "x.mp4", **{name: value})
    assert str(caught.value) == f"{name} {sentence}, not {value!r}"
    assert isinstance(caught.value, ValueError)
    with pytest.raises(SystemExit) as exited:
        main(["--video_paths", "x.mp4", f"--{name}={text}"])
    assert exited.value.code == 2
    said = f"error: argument --{name}: {sentence}, not {text!r}\n"
    assert capsys.readouterr().err == said


def test_flags_are_true_or_false():
    with pytest.raises(OptionError, match=r"^retrieval_mode must be True or False, not 'no'$"):
        Options(None, "x.mp4", retrieval_mode="no")


@pytest.mark.parametrize("cache", [None, ""])
def test_no_name_of_a_cache_is_the_usual_one(cache):
    assert Options(None, "x.mp4", output_dir="out", cache=cache).cache_path == "out/embeddings.sqlite"
    assert Options(None, "x.mp4", cache=cache).cache_path is None


@pytest.mark.parametrize(
    ("argv", "options", "said"),
    [
        (
            ["--no_cache", "--cache=x"],
            {"no_cache": True, "cache": "x"},
            "cache is not for a run with no_cache",
        ),
        (
            ["--protocol_seconds=9"],
            {"protocol_seconds": 9},
            "protocol_seconds is for the protocols mmaudio and mova",
        ),
        (["--copy_media", "--no_html"], {"copy_media": True, "no_html": True}, "copy_media is for the page"),
    ],
)
def test_options_that_do_not_go_together_are_named_in_both_ways(argv, options, said, capsys):
    with pytest.raises(OptionError, match=f"^{said}"):
        Options(None, "x.mp4", **options)
    with pytest.raises(SystemExit):
        main(["--video_paths", "x.mp4", *argv])
    name, _, sentence = said.partition(" ")
    assert capsys.readouterr().err.startswith(f"error: argument --{name}: {sentence}")


def test_the_limits_are_allowed():
    for name, values in {
        "batch_size": (1, 4096),
        "num_workers": (None, 0, 1024),
        "timeout": (0.001, 1_000_000),
        "max_matrix_gb": (0, 1e6),
        "device": ("cpu", "cuda", "cuda:7", "mps"),
        "captions": (None, "x.CSV", {"a": "text"}),
    }.items():
        for value in values:
            assert getattr(Options(None, "x.mp4", **{name: value}), name) == value


def test_the_function_and_the_command_line_have_every_option_and_its_default():
    """All but output_dir, which the command line has to have, and progress, which it always shows."""
    parser, signature = build_parser(), inspect.signature(batch_inference_av_consistency)
    for option in fields(Options):
        if option.name not in (*INPUTS, "progress"):
            default = "./outputs" if option.name == "output_dir" else option.default
            assert parser.get_default(option.name) == default, option.name
    for name, parameter in signature.parameters.items():
        if name not in (*INPUTS, "job", "more"):
            assert parameter.default == getattr(Options, name)


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'precison'"):
        batch_inference_av_consistency(None, "x.mp4", precison="fp16")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/2/3", "-1/2"])
def test_a_shard_is_one_of_a_number(text, capsys):
    with pytest.raises(SystemExit):
        main(["--video_paths", "x.mp4", f"--shard={text}"])
    message = f"argument --shard: must be I/N, such as 3/64: the third of 64 shares, not {text!r}"
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_shard_needs_a_cache(capsys):
    with pytest.raises(SystemExit):
        main(["--video_paths", "x.mp4", "--shard", "1/2", "--no_cache"])
    assert "argument --shard: not allowed with argument --no_cache" in capsys.readouterr().err
