"""The folder for nnU-Net's environment variable ``nnUNet_extTrainer``: it imports every module in it to find a trainer,
and forgets them afterwards, so that nothing else may lie here.
"""
