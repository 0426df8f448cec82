"""The 19 classes of CelebAMask-HQ, their colours, orders in which others number them, and where they lie in a face."""

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

USUAL_ORDER = "celebamask"
ORDERS = {
    USUAL_ORDER: CLASSES,
    "bisenet": (
        "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r",
        "nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
    ),
}  # fmt: skip

THIN = {"mouth", "u_lip", "l_lip", "l_ear", "r_ear", "ear_r", "neck_l"}  # may be lines one pixel wide between others
NEEDED = "skin"  # without it nothing is a face
# (axis, first, second): in a face that stands upright, the first lies above (0) or left (1) of the second in the picture.
PLACES = (
    (0, "hat", "skin"), (0, "hat", "neck"), (0, "hair", "neck"), (0, "hair", "cloth"), (0, "skin", "neck"),
    (0, "skin", "neck_l"), (0, "skin", "cloth"), (0, "l_brow", "l_eye"), (0, "r_brow", "r_eye"), (0, "l_eye", "nose"),
    (0, "r_eye", "nose"), (0, "eye_g", "nose"), (0, "nose", "mouth"), (0, "nose", "u_lip"), (0, "nose", "l_lip"),
    (0, "u_lip", "l_lip"), (1, "r_eye", "l_eye"), (1, "r_brow", "l_brow"), (1, "r_ear", "l_ear"),
)  # fmt: skip
# What people call classes beside their names.
SYNONYMS = {
    "glasses": ("eye_g",), "eyeglasses": ("eye_g",), "spectacles": ("eye_g",), "eyes": ("l_eye", "r_eye"),
    "left_eye": ("l_eye",), "right_eye": ("r_eye",), "eyebrows": ("l_brow", "r_brow"), "brows": ("l_brow", "r_brow"),
    "ears": ("l_ear", "r_ear"), "earring": ("ear_r",), "earrings": ("ear_r",), "necklace": ("neck_l",),
    "lips": ("u_lip", "l_lip"), "upper_lip": ("u_lip",), "lower_lip": ("l_lip",),
    "clothes": ("cloth",), "clothing": ("cloth",),
}  # fmt: skip
