"""The command that runs a module of this package in another Python process."""

from __future__ import annotations

import sys
from pathlib import Path

#: Extends ``sys.path`` by the arguments after the module's name, and runs the module as ``python -m`` does.
_RUN = "import runpy, sys; sys.path += sys.argv[2:]; runpy.run_module(sys.argv[1], run_name='__main__', alter_sys=True)"


def module_command(module: str, folder: Path | None = None) -> list[str]:
    """Returns the command that runs a module. ``folder`` is its working folder; None for that of this process.

    ``python -m`` would search the working folder first, so that a file named ``queue.py`` or ``random.py`` there would
    replace the standard library's module and end every process. With ``-P`` it is not searched first. It is searched
    last, because modules of plug-ins may be there; before it comes the folder of this package, which may be a checkout
    that was found through the working folder. ``PYTHONPATH`` has the same effect as ever.
    """
    return [sys.executable, "-P", "-c", _RUN, module, str(Path(__file__).parents[2]), str(folder or Path.cwd())]
