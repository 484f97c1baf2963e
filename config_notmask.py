"""Settings of training on unmasked faces: those of config_mask.py with the few values that differ."""

from config_mask import config as mask_config

config = {
    **mask_config,
    "train_data_path": "Datasets/vggface2_train_face_notmask",
    "train_data_index": "Datasets/vggface2_train_face_notmask.csv",
}
