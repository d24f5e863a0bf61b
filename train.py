"""Train a detector: python train.py --config configs/NAME.py [--field.sub=value …]"""

from tood_jax.cli.train import main

if __name__ == "__main__":
    main()
