"""Resampling gives torchaudio's samples."""

from __future__ import annotations

import pytest
import torch
import torchaudio

from imagebind.data.resampling import make_filter, resample

RATES = (1000, 8000, 11025, 12000, 15000, 22050, 24000, 32000, 37800, 44100, 48000, 64000, 96000, 192000)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n_samples", [1, 50, 4001, 70_077])
def test_samples_are_torchaudios(rate, n_samples):
    waveform = torch.randn(2, n_samples, generator=torch.Generator().manual_seed(rate)) * 0.2
    expected = torchaudio.functional.resample(waveform, rate, 16000)
    found = resample(waveform, rate, 16000)
    assert found.shape == expected.shape
    assert make_filter(rate, 16000).n_resampled(n_samples) == expected.shape[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_the_number_of_samples_is_rounded_as_torchaudio_rounds():
    waveform = torch.zeros(1, 441_001)  # of 44.1 kHz: 160000.36 samples, which float32 makes a whole number
    for n_samples in range(440_001, 441_002, 10):
        (expected,) = torchaudio.functional.resample(waveform[:, :n_samples], 44100, 16000).shape[1:]
        assert make_filter(44100, 16000).n_resampled(n_samples) == expected


def test_equal_rates_change_nothing():
    waveform = torch.randn(2, 100)
    assert resample(waveform, 16000, 16000) is waveform
