import torch

from fmwiss.data.randomness import keyed_generator


def draw(*keys: int | str) -> list[int]:
    return torch.randint(2**31, (4,), generator=keyed_generator(*keys)).tolist()  # type: ignore[arg-type]


def test_same_keys_give_the_same_stream():
    assert draw(0, "crop", "2007_000032", 3) == draw(0, "crop", "2007_000032", 3)


def test_every_key_and_its_type_and_place_counts():
    keys = [(0,), (1,), (0, "a"), (0, "a", 1), (0, "a", "1"), (0, 1, "a"), (0, "a1"), (0, "ab"), (0, "a", "b")]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_streams_do_not_change_between_releases():
    # A run that was started with one release goes on with the next.
    drawn = torch.rand(2, generator=keyed_generator(0, "crop", "2007_000032", 3)).tolist()
    assert drawn == [0.11544084548950195, 0.7894952297210693]
