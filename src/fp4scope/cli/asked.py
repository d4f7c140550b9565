"""What was served: read from files, or asked of a server."""

import json
from dataclasses import dataclass
from pathlib import Path

from fp4scope.cli.progress import Screen
from fp4scope.cli.terminal import console
from fp4scope.conductor.triage import windows_of_text
from fp4scope.deploy.served import Served
from fp4scope.deploy.server import ask_server
from fp4scope.errors import DataError, StudyError
from fp4scope.files import replace_file, require_writable
from fp4scope.stats.inference.matching import FEWEST_WINDOWS
from fp4scope.study import Study
from fp4scope.sweep import Progress


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was served, or how to ask for it.

    Attributes:
        served: A file of it.
        server: Address of a server.
        served_model: What the server calls the model.
        top: How many of the likeliest tokens it is asked for.
        reference: The original as the same engine serves it, a file.
        ids_out: Where the windows are written, and nothing else is done.
        save: Where what a server gave is written.
    """

    served: Path | None = None
    server: str | None = None
    served_model: str | None = None
    top: int = 0
    reference: Path | None = None
    ids_out: Path | None = None
    save: Path | None = None

    @property
    def anything(self) -> bool:
        """Whether anything of this is given."""
        return any(one is not None for one in (self.served, self.server, self.ids_out))

    def require(self, out: Path | None) -> None:
        """Refuse what does not go together, and files that cannot be written.

        Raises:
            StudyError: Several ways are given.
            OutputError: A file cannot be written.
        """
        given = {"--served": self.served, "--server": self.server, "--ids": self.ids_out}
        several = [name for name, one in given.items() if one is not None]
        if len(several) > 1:
            raise StudyError(f"{' and '.join(several)} do not go together; give one of them")
        asking = {"--save": self.save, "--served-model": self.served_model}
        for name, one in (asking | {"--top-logprobs": self.top or None}).items():
            if one is not None and self.server is None:
                raise StudyError(f"{name} is for a server that is asked: --server URL")
        if self.reference is not None and self.served is None and self.server is None:
            raise StudyError(
                "--reference is what an engine gives with the original; give what it gives with "
                "what is verified, too: --served FILE or --server URL"
            )
        for path in filter(None, (self.ids_out, self.save, out)):
            require_writable(path)

    def had(
        self, study: Study, tokenizer_of: str, tell: Screen
    ) -> tuple[Served | None, Served | None]:
        """What an engine gave, and what it gave with the original; None for what is not given.

        Args:
            study: The text, and how it is cut.
            tokenizer_of: The model whose tokenizer cuts it.
            tell: Shows how far it is.

        Raises:
            DataError: Too few windows, or two files of different ones.
        """
        found = Served.read(self.served) if self.served is not None else None
        full = None if self.reference is None else Served.read(self.reference)
        if self.server is not None:
            ids = windows_of_text(study, tokenizer_of).tolist()
            total = len(ids)

            def ran(done: int) -> None:
                tell(Progress("asking", done, total, f"{done} of {total} windows"))

            found = ask_server(self.server, ids, self.served_model, ran, top=self.top)
            if self.save is not None:
                found.write(self.save)
        if found is not None and len(found.ids) < FEWEST_WINDOWS:
            raise DataError(
                f"{len(found.ids)} windows were served; the verdict takes {FEWEST_WINDOWS} or more"
            )
        if full is not None and (
            found is None or full.ids.shape != found.ids.shape or (full.ids != found.ids).any()
        ):
            raise DataError(
                "the reference was served on other windows; serve both on one file of ids"
            )
        return found, full


def write_windows(study: Study, tokenizer_of: str, path: Path) -> None:
    """Write the windows of token ids that are to be served."""
    windows = windows_of_text(study, tokenizer_of).tolist()
    replace_file(path, json.dumps(windows).encode(), "choose another file")
    console().print(f"Written: {path}", soft_wrap=True)
