"""What people run already stands beside NVFP4 in the same tables."""

import json

from fp4scope.formats import WEIGHT_FORMATS

BITS = {"q8_0": 8.5, "q5_0": 5.5, "q4_0": 4.5, "int4:g128": 4.125, "nf4": 4.5}


def test_yardsticks_are_rows_with_their_bits(fp4scope, small, tmp_path):
    assert BITS.keys() == WEIGHT_FORMATS.keys()
    at = small.index("--all-quantized")
    alone = [*small[:at], *small[at + 2 :], "--windows", 8, "--formats", "nvfp4"]
    code, out, _ = fp4scope("run", *alone, "--all-quantized", ",".join(BITS), "-o", "out")
    assert code == 0
    data = json.loads((tmp_path / "out/results.json").read_text())
    rows = {row["format"]: row for row in data["summary"]["all_quantized"]}
    assert rows.keys() == {"full precision", "nvfp4", *BITS}
    assert {rows[name]["precision"] for name in BITS} == {"W8A16", "W5A16", "W4A16"}
    assert rows["q8_0"]["kl"] < rows["q5_0"]["kl"] < rows["q4_0"]["kl"]
    cost = out.partition("Formats by cost")[2].partition("Which format?")[0]
    for name, bits in BITS.items():
        (line,) = (line for line in cost.splitlines() if line.startswith(f"{name} "))
        assert f" {bits:.2f} " in line
        assert line.rstrip().endswith("a yardstick")
    # They are held beside what may be shipped, and are no answer themselves.
    assert "Weights alone:" not in out
    assert "What people run already, weights alone: q8_0 (8.50 bits) costs " in out
    page = (tmp_path / "out/report.html").read_text()
    assert "int4:g128" in page


def test_recipes_name_them_too(fp4scope, small, tmp_path):
    (tmp_path / "mixed.yaml").write_text(
        "base: q4_0\nedits:\n- {sites: ['*.down_proj'], setting: q8_0}\n"
    )
    code, out, _ = fp4scope("run", *small, "--sweep", "", "--recipe", "mixed.yaml", "-o", "out")
    assert code == 0
    assert "mixed" in out
    written = ["recipe", "out", "--measured", "mixed", "-o", "u.yaml"]
    assert fp4scope(*written)[0] == 0
    code, _, err = fp4scope("export", "u.yaml", "--to", "compressed-tensors")
    assert code == 2
    assert "a weight in q4_0, a yardstick that export does not write" in err
