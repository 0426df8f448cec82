"""What a photo shows, as conditions: the judge of a model's exam sees the labels, and its sentences are at hand.

The judge knows painted portraits only; of anything else it says something, too.
"""

import numpy as np

from cdiff_rt.editing.inversion import Reading
from cdiff_rt.errors import BadEnvironment, CdiffError
from cdiff_rt.exam import UNASKED, Exam
from cdiff_rt.notes import log


def reading_for(model: str) -> Reading | None:
    """Of a model's name; None where there is no exam for it, or nothing to run its judge with."""
    try:
        exam = Exam.of(model)
    except BadEnvironment as error:
        log.warning("what the picture shows is not estimated: %s", error)
        return None
    except CdiffError:
        return None

    def read(photo: np.ndarray) -> dict[str, np.ndarray | str]:
        judge = f"the judge of the exam of {model}, which knows {exam.paper.knows} only"
        log.info("the image is read by %s; if that is wrong, give --source-text or --source-mask (source=)", judge)
        return described(exam, photo)

    return read


def described(exam: Exam, photo: np.ndarray) -> dict[str, np.ndarray | str]:
    """A photo [S, S, 3] uint8 -> its labels and the sentence of the exam that says most of what the judge sees, and
    nothing else."""
    labels, answers = exam.ask(photo[None])
    asked = exam.answers != UNASKED
    right, wrong = (((exam.answers == answers) == truth) & asked for truth in (True, False))
    best = int(np.argmax(right.sum(1) - len(exam.paper.attributes) * wrong.sum(1)))
    return {exam.paper.mask: labels[0].astype(np.uint8), exam.paper.text: exam.paper.questions[best].sentence}
