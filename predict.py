"""Detect objects in images: python predict.py --checkpoint runs/NAME --images FILE_FOLDER_OR_GLOB … --out FOLDER"""

from tood_jax.cli.predict import main

if __name__ == "__main__":
    main()
