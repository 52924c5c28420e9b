"""Writes the bundle of each failure as soon as a session has it, and of each case that a device aborts at."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from opconform.harness.model.values import data_of, inputs_of
from opconform.harness.search.observer import Observer
from opconform.reports.repro.place import repro_dir

if TYPE_CHECKING:
    from opconform.harness.explain.failure import Failure
    from opconform.harness.model.op import Op
    from opconform.harness.run.target import Target
    from opconform.harness.search.result import Result
    from opconform.harness.search.settings import Settings


class BundleWriter(Observer):
    """Writes into `out_dir`. What goes wrong is said on stderr: the failure itself must still be shown."""

    def __init__(self, out_dir: Path) -> None:
        self._out_dir = out_dir

    def result(self, op: Op, target: Target, result: Result) -> None:
        if result.failure is not None:
            self._write(result.failure, target)
        for lie in result.lies:
            failure = lie.failure(target.label, target.device.description)
            case = lie.case.with_data(data_of(inputs_of(lie.case, op)))
            self._write(replace(failure, case=case, bound=op.bound, bound_at=op.where_bound()), target)

    def _write(self, failure: Failure, target: Target) -> None:
        from opconform.reports.repro.bundle import write_bundle  # it takes a while to import

        what = f"the bundle of {failure.case.id} could not be"
        try:
            write_bundle(failure, target, self._out_dir)
        except OSError as error:
            print(f"{what} written: {error}", file=sys.stderr)
        except Exception:
            print(f"{what} made:\n{traceback.format_exc()}", file=sys.stderr)


def bundle_writers(settings: Settings) -> list[Observer]:
    """The observer that writes bundles; none with `--repro-dir none`."""
    folder = repro_dir(settings)
    return [] if folder is None else [BundleWriter(folder)]
