"""`python -m whisper_peft` is `whisper-peft`."""

from whisper_peft.cli.commands import main

if __name__ == "__main__":
    main()
