"""The teacher of a recipe whose target learns from an average of its own encoder."""

from mpp.config.pretrain import PretrainConfig
from mpp.recipe.model import PretrainingModel
from mpp.recipe.teacher import Teacher, TeacherKnobs
from mpp.train.average import WeightAverage
from mpp.train.schedule import learning_rate


def teacher_of(model: PretrainingModel, config: PretrainConfig, began: int = 0) -> WeightAverage | None:
    """The average of the encoder that the target learns from, if it asks for one; the model has it lent.  began: of the learning rate's cycle."""
    knobs, optim, batch = config.target, config.optim, config.data.global_batch
    if not isinstance(knobs, TeacherKnobs):
        return None

    def decay_at(step: int) -> float:
        seen = (step - 1) * batch  # before it, as the learning rate counts
        return knobs.decay_at(seen, learning_rate(seen, optim, batch, began), optim.total_samples, began)

    teacher = WeightAverage(model.encoder, decay_at, "encoder.")
    model.lend(Teacher(teacher.net, model.mean, model.std))
    return teacher
