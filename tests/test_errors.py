from torchstone.errors import CallError, UnknownName, nearest, unknown_name


def test_a_mistyped_name_gets_the_nearest_valid_ones():
    error = unknown_name("model", "inceptionext_tiny", ["inceptionnext_tiny", "eca_resnet18"])
    assert isinstance(error, CallError)
    assert isinstance(error, KeyError)
    assert str(error) == "unknown model 'inceptionext_tiny': did you mean 'inceptionnext_tiny'?"


def test_case_does_not_matter_when_looking_for_the_nearest_name():
    assert nearest("ECA_ResNet18", ["eca_resnet18", "eca_resnet34", "x"])[0] == "eca_resnet18"


def test_a_name_like_no_other_gets_the_list():
    assert "valid: aa, bb." in str(unknown_name("key", "zzzzz", ["bb", "aa"]))


def test_an_empty_list_is_said_to_be_empty():
    assert str(UnknownName("x")) == "x"
    assert str(unknown_name("method", "spark", [])) == "unknown method 'spark': there are none yet."
