"""The 19 classes of CelebAMask-HQ and their colours; a mask's pixel value is an index into both."""

CLASSES = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip

PALETTE = (
    (0, 0, 0), (204, 0, 0), (76, 153, 0), (204, 204, 0), (51, 51, 255),
    (204, 0, 204), (0, 255, 255), (255, 204, 204), (102, 51, 0), (255, 0, 0),
    (102, 204, 0), (255, 255, 0), (0, 0, 153), (0, 0, 204), (255, 51, 153),
    (0, 204, 204), (0, 51, 0), (255, 153, 51), (0, 204, 0),
)  # fmt: skip

# What people call classes beside their names.
SYNONYMS = {
    "glasses": ("eye_g",), "eyeglasses": ("eye_g",), "spectacles": ("eye_g",), "eyes": ("l_eye", "r_eye"),
    "left_eye": ("l_eye",), "right_eye": ("r_eye",), "eyebrows": ("l_brow", "r_brow"), "brows": ("l_brow", "r_brow"),
    "ears": ("l_ear", "r_ear"), "earring": ("ear_r",), "earrings": ("ear_r",), "necklace": ("neck_l",),
    "lips": ("u_lip", "l_lip"), "upper_lip": ("u_lip",), "lower_lip": ("l_lip",),
    "clothes": ("cloth",), "clothing": ("cloth",),
}  # fmt: skip
