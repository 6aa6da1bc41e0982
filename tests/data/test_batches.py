import torch

from fmwiss.data.batches import Batch, Sample, collate


def weak(image_id: str, value: float) -> Sample:
    size = 4
    return Sample(
        image_id,
        image=torch.full((3, size, size), value),
        valid=torch.ones(size, size, dtype=torch.bool),
        pseudo=torch.zeros(2, size, size, dtype=torch.bool),
        tags=torch.tensor([True, False]),
        pasted=torch.full((size, size), 7, dtype=torch.uint8),
    )


def test_weak_samples_are_stacked_in_order():
    batch = collate([weak("a", 0.25), weak("b", 0.75)])
    assert batch.ids == ("a", "b")
    assert batch.image.shape == (2, 3, 4, 4) and batch.image.dtype == torch.float32
    assert batch.image[:, 0, 0, 0].tolist() == [0.25, 0.75]
    assert batch.valid.shape == (2, 4, 4) and batch.valid.dtype == torch.bool
    assert batch.mask is None
    assert batch.pseudo is not None and batch.pseudo.shape == (2, 2, 4, 4) and batch.pseudo.dtype == torch.bool
    assert batch.tags is not None and batch.tags.tolist() == [[True, False]] * 2
    assert batch.pasted is not None and batch.pasted.dtype == torch.int64 and batch.pasted.unique().tolist() == [7]


def test_masks_become_indices_and_what_a_step_lacks_is_none():
    sample = weak("a", 0.0)
    mask = torch.full((4, 4), 255, dtype=torch.uint8)
    batch = collate([Sample("a", sample.image, sample.valid, mask=mask)] * 3)
    assert batch.mask is not None and batch.mask.dtype == torch.int64 and batch.mask.shape == (3, 4, 4)
    assert batch.mask.unique().tolist() == [255]
    assert (batch.pseudo, batch.tags, batch.pasted) == (None, None, None)


def test_moving_moves_every_tensor():
    batch = collate([weak("a", 0.0)]).to("meta")
    assert isinstance(batch, Batch) and batch.ids == ("a",) and batch.mask is None
    tensors = [batch.image, batch.valid, batch.pseudo, batch.tags, batch.pasted]
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)
