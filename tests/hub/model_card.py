"""What the Hub reads in a README: the YAML in front, what it rejects there, and the tags it derives from it."""

from __future__ import annotations

import re

import yaml


LICENSES = set(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0"
    " bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc"
    " cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0"
    " cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0"
    " cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1"
    " eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc intel-research lppl-1.3c ms-pl"
    " apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense"
    " zlib pddl llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 fair-noncommercial-research-license gemma"
    " grok2-community h-research unknown other".split()
)
RELATIONS = {"adapter", "merge", "quantized", "finetune"}


def metadata(readme: str) -> tuple[dict, list[str]]:
    """The YAML in front of a README, and what the Hub would reject in it."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", readme, flags=re.DOTALL)
    if match is None:
        return {}, []
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return {}, [f"YAML Metadata Error: {str(error).splitlines()[0]}"]
    if data is None:
        return {}, []
    if not isinstance(data, dict):
        return {}, ["YAML Metadata Error: it must be an object"]
    return data, _errors(data)


def _errors(data: dict) -> list[str]:
    errors = []
    for license_name in _listed(data.get("license")):
        if license_name not in LICENSES:
            errors.append(f'"license" must be one of the known licenses, not {license_name!r}')
    for name in _listed(data.get("base_model")):
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            errors.append(f'"base_model" with value {name!r} is not valid. Use a model id from https://hf.co/models.')
    if data.get("base_model_relation") not in (None, *RELATIONS):
        errors.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    for name in ("tags", "metrics"):
        if name in data and not all(isinstance(value, str) for value in _listed(data[name])):
            errors.append(f'"{name}" must hold texts')
    if "model-index" in data:
        errors += _model_index_errors(data["model-index"])
    return errors


def _model_index_errors(index: object) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    for position, model in enumerate(index):
        where = f'"model-index[{position}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            return [f'{where}.name" is required']
        for number, result in enumerate(model.get("results") or []):
            here = f"{where}.results[{number}]"
            for part in ("task", "dataset"):
                if not isinstance(result.get(part), dict) or not isinstance(result[part].get("type"), str):
                    return [f'{here}.{part}.type" is required']
            if not isinstance(result["dataset"].get("name"), str):
                return [f'{here}.dataset.name" is required']
            for metric in result.get("metrics") or []:
                if not isinstance(metric.get("type"), str) or "value" not in metric:
                    return [f'{here}.metrics" need a type and a value']
    return []


def derived_tags(data: dict) -> list[str]:
    """The tags by which the Hub's search finds a model."""
    tags = [tag for tag in _listed(data.get("tags")) if isinstance(tag, str)]
    tags += [str(data[name]) for name in ("library_name", "pipeline_tag") if data.get(name)]
    tags += [f"dataset:{name}" for name in _listed(data.get("datasets"))]
    for name in _listed(data.get("base_model")):
        tags += [f"base_model:{name}", f"base_model:{data.get('base_model_relation') or 'finetune'}:{name}"]
    tags += [f"license:{name}" for name in _listed(data.get("license"))]
    return list(dict.fromkeys(tags))


def _listed(value: object) -> list:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
