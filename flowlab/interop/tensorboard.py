"""`TensorBoard`: a callback that shows a fit in TensorBoard, by torch's own writer. Needs the extra `tensorboard`."""

import os
from types import TracebackType
from typing import Any

from flowlab.training import TrainingState
from flowlab.training.following import curves

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ImportError("flowlab.interop.tensorboard needs TensorBoard: pip install 'flowlab[tensorboard]'") from error


class TensorBoard:
    """A callback for `fit`, `FlowDensity.fit` and `fit_posterior` that writes the curves of training.

    Losses are in nats per row, as "train", "validation", "learning_rate" and "gradient_norm" under each stage's name.

    Args:
        log_dir: Folder for TensorBoard; torch's choice, below `runs`, when None.

    Example:
        >>> import tempfile, torch, flowlab
        >>> from flowlab.interop.tensorboard import TensorBoard
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> flow = flowlab.presets.real_nvp(2, layers=2, hidden=(8,))
        >>> with TensorBoard(tempfile.mkdtemp()) as callback:
        ...     history = flowlab.fit(flow, x, epochs=2, callback=callback, progress=False)
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None) -> None:
        self.writer: Any = SummaryWriter(None if log_dir is None else os.fspath(log_dir))

    def __call__(self, state: TrainingState) -> None:
        for name, value in curves(state).items():
            self.writer.add_scalar(name, value, state.step)

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is not written yet."""
        self.writer.close()
