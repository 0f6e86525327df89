"""Programs that came with files of others (chat templates, tokenizers): their limits, checked before or while they run."""
