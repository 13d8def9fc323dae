"""What Parsl's tests, and `parsl-perf`, run with: EXEX in a world of two slots."""

from parsl.config import Config

from exex.integrations.parsl import ExtremeScaleExecutor


def fresh_config() -> Config:
    return Config(executors=[ExtremeScaleExecutor(workers=1, settings={"slots": 2})], strategy="none")
