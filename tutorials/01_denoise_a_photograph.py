"""Denoise a photograph with a mixture of factor analyzers fitted to the noisy patches.

Run ``python tutorials/01_denoise_a_photograph.py``; it takes about two minutes on two cores and
writes its pictures and files to ``runs/demo/``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from safetensors.torch import save_file
from skimage import data, metrics, restoration
from torch import Tensor

from pyro_mixtures import EM, fit, log_evidence, reconstruct, seed_rows
from pyro_mixtures.data import average_patches, extract_patches
from pyro_mixtures.diagnostics import plot_denoised, plot_history, plot_image_sheet, to_arviz
from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import Fit
from pyro_mixtures.models import MixtureOfFactorAnalyzers

NOISE = 25 / 255
PATCH = 8
COMPONENTS, FACTORS = 200, 5


def main(out: Path, epochs: int) -> dict[str, Any]:
    """Run the tutorial and return the results that it prints."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    clean = data.camera() / 255
    noisy = with_noise(clean, seed=0)

    # 1. The data: every 8 x 8 patch of the noisy picture is a row.
    rows = extract_patches(noisy, PATCH)

    # 2. The model, started at rows that lie far apart, and the strategy: each row keeps 3 of the
    # 200 components as candidates.
    model = MixtureOfFactorAnalyzers(components=COMPONENTS, features=PATCH * PATCH, factors=FACTORS)
    model.start_at(seed_rows(rows, COMPONENTS))
    guide = TruncatedPartition(model, components=COMPONENTS, candidates=3, neighbors=15, explore=1)

    # 3. The fit.
    fitted = fit(EM(model, guide), rows, batch_size=65536, epochs=epochs, warmup=6)

    # 4. Each patch becomes its posterior mean; the patches are averaged back into a picture.
    started = time.perf_counter()
    denoised = average_patches(reconstruct(model, rows, noise=NOISE), tuple(noisy.shape))
    denoise_seconds = time.perf_counter() - started

    # 5. Held-out rows: the same scene with different noise.
    heldout = extract_patches(with_noise(clean, seed=1), PATCH)[::10]
    report = {
        **quality(clean, noisy, denoised),
        **cost(fitted, len(rows)),
        "log_evidence_heldout": float(log_evidence(model, heldout).mean()),
        "log_evidence_heldout_truncated": float(log_evidence(model, heldout, guide=guide).mean()),
        "denoise_seconds": denoise_seconds,
    }
    write(out, clean, noisy, denoised, fitted, heldout, report)
    print_report(report, out)
    return report


def with_noise(clean: np.ndarray, *, seed: int) -> Tensor:
    """Add white noise of standard deviation 25/255."""
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=clean.shape)
    return torch.tensor(clean + noise, dtype=torch.float32)


def quality(clean: np.ndarray, noisy: Tensor, denoised: Tensor) -> dict[str, float]:
    """Return the PSNR in dB of the noisy picture, of non-local means, and of the mixture."""
    non_local_means = restoration.denoise_nl_means(
        noisy.numpy(), sigma=NOISE, h=0.6 * NOISE, patch_size=5, patch_distance=6, fast_mode=True
    )
    pictures = {"psnr_noisy": noisy.numpy(), "psnr_nlm": non_local_means, "psnr": denoised.numpy()}
    return {
        name: metrics.peak_signal_noise_ratio(clean, picture, data_range=1)
        for name, picture in pictures.items()
    }


def cost(fitted: Fit, rows: int) -> dict[str, Any]:
    """Count the joint densities that were evaluated, and those of as many passes of exact EM."""
    last = fitted.history.epochs[-1]
    return {
        "evaluations": last.evaluations,
        "evaluations_full": rows * COMPONENTS * len(fitted.history),
        "epochs": len(fitted.history),
        "elbo": last.elbo,
        "components_live": last.live,
        "fit_seconds": last.seconds,
    }


def write(
    out: Path,
    clean: np.ndarray,
    noisy: Tensor,
    denoised: Tensor,
    fitted: Fit,
    heldout: Tensor,
    report: dict[str, Any],
) -> None:
    """Write the pictures, the ArviZ file, the parameters and the results."""
    out.mkdir(parents=True, exist_ok=True)
    panels = plot_denoised(noisy.numpy(), denoised.numpy(), clean)
    panels.flat[0].figure.savefig(out / "denoised.png", dpi=110)
    model = fitted.model
    order = model.weights.argsort(descending=True)
    sheet = plot_image_sheet(model.loc.detach().numpy(), shape=(PATCH, PATCH), order=order.numpy())
    sheet.figure.savefig(out / "components.png", dpi=110)
    curves = plot_history(fitted.history, full=len(extract_patches(noisy, PATCH)) * COMPONENTS)
    curves[0].figure.savefig(out / "history.png", dpi=110)
    to_arviz(fitted, heldout, observed_data=False).to_netcdf(out / "fit.nc")
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        out / "params.safetensors",
    )
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def print_report(report: dict[str, Any], out: Path) -> None:
    """Print the results."""
    share = report["evaluations"] / report["evaluations_full"]
    print(
        f"PSNR  noisy {report['psnr_noisy']:.2f} dB   non-local means {report['psnr_nlm']:.2f} dB",
        end="   ",
    )
    print(f"mixture of factor analyzers {report['psnr']:.2f} dB")
    print(
        f"joint densities evaluated   {report['evaluations']:.3g} "
        f"of {report['evaluations_full']:.3g} ({share:.1%})"
    )
    print(
        f"held-out log evidence       {report['log_evidence_heldout']:.3f} nats per patch",
        end=", all components; ",
    )
    print(f"{report['log_evidence_heldout_truncated']:.3f} truncated to 3 candidates")
    print(f"components in use           {report['components_live']} of {COMPONENTS}")
    print(
        f"time                        fit {report['fit_seconds']:.0f} s, "
        f"denoising {report['denoise_seconds']:.0f} s"
    )
    print(f"pictures and files in       {out}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="where to write (runs/demo)"
    )
    parser.add_argument("--epochs", type=int, default=25, help="maximum number of EM steps (25)")
    options = parser.parse_args()
    main(options.out, options.epochs)
