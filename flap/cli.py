import hydra
from flap.config import config_dir
def main():
    @hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
    def go(cfg):
        print(cfg)
    go()
class ConsoleFormatter: pass
