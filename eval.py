"""Evaluate a checkpoint: python eval.py --checkpoint runs/NAME [--field.sub=value …]"""

from tood_jax.cli.evaluate import main

if __name__ == "__main__":
    main()
