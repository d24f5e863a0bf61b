"""Train a detector: python train.py --config configs/NAME.py [--field.sub=value …]"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports of some packages ignore a Ctrl-C

from tood_jax.cli.train import main  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    main()
