"""Compile a config for other devices: python compile_for.py --topology v5e:16x16 --config configs/NAME.py"""

from tood_jax.tools.compile_for.main import main

if __name__ == "__main__":
    main()
