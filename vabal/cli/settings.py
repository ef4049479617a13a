"""What `params.yaml` may say, for editors: `settings schema`."""


def schema() -> None:
    """Print the JSON schema of params.yaml: editors complete and check settings with it (docs/settings.md).

    Example: `vabal settings schema > .vabal/params.schema.json`
    """
    from vabal.cli.render import print_json
    from vabal.settings.schema import document

    print_json(document())
