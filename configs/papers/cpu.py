"""What makes a method of this folder small enough for 2 cores."""

from collections.abc import Callable

from ml_collections import ConfigDict


def shrunk(
    make: Callable[[], ConfigDict], *, own_student: bool = False
) -> Callable[[], ConfigDict]:
    """Return a get_config at 64 px, with a teacher that a CPU can train.

    All methods have the same student, which starts from ImageNet weights, except where
    `own_student` keeps that of the method.
    """

    def get_config() -> ConfigDict:
        c = make()
        c.image_size = 64
        c.cpu_devices = 2
        c.data.dir = "../shared/data/ham10000_200x150"
        c.data.train_size = 96
        c.teacher.model = "efficientnet_lite0"
        c.teacher.init = "../shared/weights/efficientnet_lite0_imagenet.npz"
        if not own_student:
            weights = "../shared/weights/mobilenet_v3_small_imagenet.weights.h5"
            c.student.model, c.student.init = "mobilenet_v3_small", weights
            c.student.learning_rate = 2e-3
        c.teacher.epochs = 3
        c.teacher.learning_rate = 5e-4
        c.student.epochs = 8
        for stage in (c.teacher, c.student):
            stage.batch_size = 64
            stage.ema_decay = 0.99
        return c

    return get_config
