"""How long a sample may be, and what to type about rows that are longer."""

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.errors import ConfigError


def length_limit(cfg: RunConfig, max_positions: int | None) -> int | None:
    """Tokens of the longest sample that is trained on. None: any.

    Raises:
        ConfigError: `data.max_seq_len` or `data.block_size` is above `max_positions`.
    """
    block = cfg.data.block_size
    if block is not None and max_positions is not None and block > max_positions:
        raise ConfigError(
            f"data.block_size={block} is more than the {max_positions} tokens that the model can hold. "
            f"Type data.block_size={max_positions} or less"
        )
    bound = cfg.algo.max_tokens_per_gpu
    if cfg.data.max_seq_len == AUTO:
        if cfg.data.streaming and bound != AUTO:
            # The longest sample of a stream is unknown, and one above the bound would end the run days later.
            return min(int(bound), max_positions or int(bound))
        return max_positions
    limit = int(cfg.data.max_seq_len)
    if max_positions is not None and limit > max_positions:
        raise ConfigError(
            f"data.max_seq_len={limit} is more than the {max_positions} tokens that the model can hold. "
            f"Type data.max_seq_len={max_positions} or less, or auto"
        )
    if cfg.data.streaming and bound != AUTO and int(bound) < limit:
        raise ConfigError(
            f"algo.max_tokens_per_gpu={bound} is below data.max_seq_len={limit}, so a sample of the stream may not fit. "
            f"Type algo.max_tokens_per_gpu={limit}, or data.max_seq_len={bound} to leave longer samples out"
        )
    return limit


def advice_on_long_rows(max_seq_len: int | str, num_tokens: int, max_positions: int | None) -> str:
    """What to type to train on rows that are too long.

    Args:
        max_seq_len: as `data.max_seq_len`.
        num_tokens: the limit that would take all of them.
        max_positions: the longest sequence in tokens that the model can hold. None: any.
    """
    if max_seq_len != AUTO and (max_positions is None or num_tokens <= max_positions):
        return f"To train on them, type data.max_seq_len={num_tokens}"
    if max_seq_len != AUTO and max_positions is not None and int(max_seq_len) < max_positions:
        return f"The model can hold up to {max_positions}: type data.max_seq_len=auto"
    return "The model can hold no more: type data.on_long=split or truncate, or choose a model with a longer context"
