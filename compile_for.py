"""Compile for devices that needn't be here: python compile_for.py --topology v5e:16x16 --config configs/NAME.py"""

from tood_jax.cli.compile_for import main

if __name__ == "__main__":
    main()
