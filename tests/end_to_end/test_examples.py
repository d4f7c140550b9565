"""The examples run as they stand, on a tiny model."""

import json
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_script(model_folder, text_file, tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / "keep_what.py"))["main"]
    main(str(model_folder), str(text_file), str(tmp_path / "out"), windows=8, seq_len=32)
    said = capsys.readouterr().out
    assert "PPL" in said
    assert "for each weight" in said
    assert (tmp_path / "out/units/report.html").exists()
    assert (tmp_path / "out/recipe/given.csv").exists()


def test_the_notebook(model_folder, text_file, monkeypatch):
    for name, value in {"MODEL": model_folder, "TEXT": text_file, "SEQ_LEN": 32}.items():
        monkeypatch.setenv(name, str(value))
    cells = json.loads((EXAMPLES / "what_fp4_costs.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {}
    for source in code:
        exec(source, names)
    assert len(names["d"].projections) == 2 * 7
    assert code[-1].startswith("d.plot(")
