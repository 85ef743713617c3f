"""What makes a method of this folder small enough for 2 cores."""

from collections.abc import Callable

from ml_collections import ConfigDict


def shrunk(make: Callable[[], ConfigDict]) -> Callable[[], ConfigDict]:
    """Return a get_config at 64 px, with a teacher that a CPU can train."""

    def get_config() -> ConfigDict:
        c = make()
        c.image_size = 64
        c.cpu_devices = 2
        c.data.dir = "../shared/data/ham10000_200x150"
        c.data.train_size = 96
        c.teacher.model = "efficientnet_lite0"
        c.teacher.init = "../shared/weights/efficientnet_lite0_imagenet.npz"
        c.student.model = "mobilenet_v3_small"
        c.student.init = "../shared/weights/mobilenet_v3_small_imagenet.weights.h5"
        c.teacher.epochs = 3
        c.teacher.learning_rate = 5e-4
        c.student.epochs = 8
        c.student.learning_rate = 2e-3
        for stage in (c.teacher, c.student):
            stage.batch_size = 64
            stage.ema_decay = 0.99
        return c

    return get_config
