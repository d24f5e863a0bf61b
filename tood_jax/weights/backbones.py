"""ImageNet backbones by short name (`--init_from resnet50`): timm's copies of torchvision's weights on the Hub."""

BACKBONES = {
    # The published TOOD starts from torchvision's first weights (IMAGENET1K_V1), which timm calls tv_in1k. All have
    # torchvision's names of tensors, BatchNorm's ε = 1e-5 and the stride in the 3×3 convolution.
    "resnet18": "hf://timm/resnet18.tv_in1k@bbd144b3e5565108aad885f145491d11bc6ce807/model.safetensors"
    "#sha256=694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
    "resnet34": "hf://timm/resnet34.tv_in1k@1b7b21cca82ff974d341713f777bf740c2db38c4/model.safetensors"
    "#sha256=0bb82595a564991a9d424708b33f5d843f5aaed7f6c0886ff10849ff97022235",
    "resnet50": "hf://timm/resnet50.tv_in1k@78f3ecfdb38e06d9b8397f662e7ab8fee96026fa/model.safetensors"
    "#sha256=5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    "resnet101": "hf://timm/resnet101.tv_in1k@main/model.safetensors",  # its commit and checksum are not known here
    "resnext101_64x4d": "hf://timm/resnext101_64x4d.tv_in1k@56d0407ee160d0f4436a455f9d3f66f4454010ac/model.safetensors"
    "#sha256=47528f24e5cd6844249c9e4ea11aed6619431b83a0596afe80efdfffdb369900",
}
"""Exact name of each file, as `download` takes it; a name without a commit and a checksum takes the newest file."""
