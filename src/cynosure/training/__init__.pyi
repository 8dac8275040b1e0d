from cynosure.training.run import Trained as Trained
from cynosure.training.run import train as train
from cynosure.training.settings import TrainSettings as TrainSettings
from cynosure.training.watch import Diverged as Diverged
from cynosure.training.watch import Watcher as Watcher
