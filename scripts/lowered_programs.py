"""Write the training and detection steps as StableHLO, to see that a change of the code leaves them as they were.

    python scripts/lowered_programs.py --out build/before      # in a checkout from before the change
    python scripts/lowered_programs.py --out build/after       # in the changed one
    python scripts/lowered_programs.py --compare build/before build/after

Each program is lowered for cpu, cuda and tpu on the CPU; nothing is compiled and nothing runs. Locations, names of
functions and names of arguments are left out, so a renamed function does not count as a difference. Beside each program
lie the names and shapes of all parameters and the config as JSON.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PLATFORMS = ("cpu", "cuda", "tpu")
R50, X101_DCN = "tood_r50_fpn_1x_coco", "tood_x101_64x4d_fpn_dconv_c4_c5_ms_2x_coco"
RIVAL = "rivals/paa_r50_fpn_1x_coco"
CANVAS = (256, 384)
IMAGES, OBJECTS, CLASSES = 2, 20, 80


def programs() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Name to (config's path, platform, changed fields of `train`)."""
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for path in (R50, X101_DCN, RIVAL):
        for platform in PLATFORMS:
            found[f"{path.split('/')[-1]}.{platform}"] = (path, platform, {})
            if path != RIVAL:
                found[f"{path}.bfloat16.{platform}"] = (path, platform, {"precision": "bfloat16"})
    changed = {"scan_blocks": True, "remat": "blocks", "accumulate_steps": 2}
    for platform in PLATFORMS:
        found[f"{R50}.scan_remat.{platform}"] = (R50, platform, changed)
    others = [
        f"{folder}/{file.stem}"
        for folder in ("rivals", "ablation")
        for file in (ROOT / "configs" / folder).glob("*.py")
    ]
    for path in sorted({*others, "tood_r50_fpn_anchor_based_1x_coco", "demo", "small_set"} - {RIVAL}):
        found[f"{path.split('/')[-1]}.cpu"] = (path, "cpu", {})
    return found


def write(out: Path, only: str) -> None:
    """All programs whose names contain `only`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, (path, platform, fields) in programs().items():
        if only not in name or (out / f"{name}.detect.mlir").exists():
            continue
        for step, lowered in lower(path, platform, fields).items():
            (out / f"{name}.{step}").write_text(lowered)
        print(name, flush=True)


def lower(path: str, platform: str, fields: dict[str, Any]) -> dict[str, str]:
    """Text of each step of a config, of its parameters and of itself."""
    import jax

    from tood_jax.config import to_dict
    from tood_jax.distributed.sharding import make_mesh
    from tood_jax.tools.compile_for import programs as steps

    config = load(path)
    packs = {"pack_levels": "always" if platform == "tpu" and config.head.kind == "t_head" else "never"}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **packs, **fields))
    mesh = make_mesh(jax.devices()[:1])
    texts = {}
    for name, make in (("train.mlir", steps.trace_train_step), ("detect.mlir", steps.trace_detect_step)):
        traced = make(config, CLASSES, IMAGES, CANVAS, mesh)
        texts[name] = plain(traced.lower(lowering_platforms=(platform,)).as_text())
        if name == "train.mlir":
            state = traced.in_avals[0][0] if isinstance(traced.in_avals[0], tuple) else traced.in_avals
            leaves = jax.tree_util.tree_leaves_with_path(state)
            texts["state.txt"] = "".join(f"{jax.tree_util.keystr(key)} {leaf}\n" for key, leaf in leaves)
    texts["config.json"] = json.dumps(to_dict(config), indent=1)
    return texts


def load(path: str) -> Any:
    """The config of a file in configs/."""
    from tood_jax.config.files import load_config

    return load_config(str(ROOT / "configs" / f"{path}.py"))


def plain(text: str) -> str:
    """StableHLO with functions numbered in the order in which they appear, and without names of arguments."""
    numbers: dict[str, str] = {}
    text = re.sub(r'(?:jax\.(?:result_info|arg_info)|mhlo\.frontend_attributes) = "[^"]*",? ?', "", text)

    def number(match: re.Match[str]) -> str:
        before, symbol = match.groups()
        return match.group() if before else numbers.setdefault(symbol, f"@f{len(numbers)}")

    return re.sub(r"(custom_call )?(@[\w.$-]+)", number, text)


def compare(before: Path, after: Path) -> int:
    """Print what differs; the exit status. Operations alone in another order are no difference, and are counted."""
    names = sorted({file.name for folder in (before, after) for file in folder.iterdir()})
    different, reordered = 0, 0
    for name in names:
        texts = [(folder / name).read_text() if (folder / name).exists() else "" for folder in (before, after)]
        if texts[0] == texts[1]:
            continue
        counts = [operations(text) if name.endswith(".mlir") else Counter(text.splitlines()) for text in texts]
        lost, new = counts[0] - counts[1], counts[1] - counts[0]
        if not lost and not new:
            reordered += 1
            continue
        different += 1
        print(f"{name}: {sum(lost.values())} lines are gone, {sum(new.values())} are new")
        for sign, lines in (("-", lost), ("+", new)):
            print(*(f"    {sign} {count}× {line[:200]}" for line, count in lines.most_common(12)), sep="\n")
    print(f"{len(names) - different} of {len(names)} are equal, {reordered} of them with operations in another order")
    return 1 if different else 0


def operations(text: str) -> Counter[str]:
    """Lines without names, and how often each is there. Reshapes are left out: they compute nothing."""
    lines = (re.sub(r"[%@#][\w.]+(:\d+)?", "", line).strip() for line in text.splitlines())
    return Counter(line for line in lines if "stablehlo.reshape" not in line)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder to write the programs to")
    parser.add_argument("--only", default="", help="only programs whose names contain this")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    options = parser.parse_args()
    if options.compare:
        sys.exit(compare(*options.compare))
    write(options.out, options.only)


if __name__ == "__main__":
    main()
