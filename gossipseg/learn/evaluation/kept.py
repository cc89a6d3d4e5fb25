"""Predictions on validation cases that are kept on the disk, so that no model predicts a case twice."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import blake3
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MOST_BYTES = 4 << 30
"""Largest size of the folder; what does not fit is predicted again."""
SUFFIX, HALF = ".logits", ".half"


class KeptPredictions:
    """Logits (K, *spatial) float32 by model and case. They are bound to the image: another one under the same
    name is another case. What cannot be written or read is not there."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes

    def get(self, model: str, case: str, image: Tensor) -> Tensor | None:
        """The logits; None: they are not kept. `model`: a hash of its weights."""
        path = self._path(model, case, image)
        try:
            return load_file(path)["logits"] if path.exists() else None
        except (OSError, SafetensorError, KeyError):
            path.unlink(missing_ok=True)
            return None

    def put(self, model: str, case: str, image: Tensor, logits: Tensor) -> None:
        """Keep them, if there is room. Those of an earlier image of this case are deleted."""
        size = logits.numel() * logits.element_size()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep_images(case, self._path(model, case, image))
            if self._bytes() + size > self._most_bytes:
                return
            path = self._path(model, case, image)
            half = path.with_suffix(HALF)
            save_file({"logits": logits.contiguous()}, half)
            half.replace(path)
        except (OSError, SafetensorError):  # the latter is what safetensors raises for a full disk
            self._sweep_halves()

    def sweep(self, models: Collection[str], cases: Collection[str]) -> None:
        """Delete all but those of these models and cases."""
        kept_models, kept_cases = {_short(m) for m in models}, {_short(c) for c in cases}
        for file in self._files():
            case, model = [*file.stem.split("-"), ""][:2]
            if case not in kept_cases or model not in kept_models:
                file.unlink(missing_ok=True)
        self._sweep_halves()

    def sweep_cases(self, cases: Collection[str]) -> None:
        """Delete those of all cases but these."""
        kept = {_short(c) for c in cases}
        for file in self._files():
            if file.stem.split("-")[0] not in kept:
                file.unlink(missing_ok=True)

    def _sweep_images(self, case: str, path: Path) -> None:
        """Delete what any model predicted for another image of the case than the one in `path`."""
        image = path.stem.rpartition("-")[2]
        for file in self._folder.glob(f"{_short(case)}-*{SUFFIX}"):
            if file.stem.rpartition("-")[2] != image:
                file.unlink(missing_ok=True)

    def _files(self) -> Iterator[Path]:
        return iter(sorted(self._folder.glob(f"*{SUFFIX}")))

    def _bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files())

    def _sweep_halves(self) -> None:
        for file in self._folder.glob(f"*{HALF}"):
            file.unlink(missing_ok=True)

    def _path(self, model: str, case: str, image: Tensor) -> Path:
        content = image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        seen = blake3.blake3(content).hexdigest()[:16]
        return self._folder / f"{_short(case)}-{_short(model)}-{seen}{SUFFIX}"


def _short(name: str) -> str:
    return blake3.blake3(name.encode(errors="surrogateescape")).hexdigest()[:24]
