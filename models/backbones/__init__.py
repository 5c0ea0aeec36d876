"""Backbones of the published networks: MSCAN, dilated ResNets, VGG16, and what timm gives."""
