"""Compare with PyTorch: python compare_torch.py --config configs/NAME.py [--checkpoint FILE.pth] [--image FILE …]"""

from tood_jax.tools.compare_torch.main import main

if __name__ == "__main__":
    main()
