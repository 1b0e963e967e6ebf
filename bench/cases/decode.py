"""JPEG files decoded by the libraries that loaders use, apart from what is done with the pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.cases.views import HEIGHT, WIDTH, images_a_second, photographs
from bench.opbench import Call, Inputs, Make, OpBench, Provider, Unavailable

PEER: dict[str, Any] = {"partial": True}


def _decode(make: Callable[[], Callable[[bytes], Any]]) -> Make:
    def made(inputs: Inputs, mode: str) -> Call:
        if mode == "fwdbwd":
            raise Unavailable("decoding has no gradient")
        try:
            decode = make()
        except ImportError as error:
            raise Unavailable(f"{error}") from None
        for file in inputs["files"]:
            if np.asarray(decode(file)).size != 3 * HEIGHT * WIDTH:
                raise Unavailable("gives no photograph of this size")

        def call() -> dict[str, Tensor]:
            for file in inputs["files"]:
                decode(file)
            return {}

        return call

    return made


def files_of(B: int) -> Inputs:
    files = []
    for image in photographs(B):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return {"files": files}


def _pillow_decode() -> Callable[[bytes], Any]:
    return lambda file: Image.open(io.BytesIO(file)).convert("RGB")


def _cv2_decode() -> Callable[[bytes], Any]:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    return lambda file: cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)


def _torchvision_decode() -> Callable[[bytes], Any]:
    from torchvision.io import decode_jpeg

    return lambda file: decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8))


def by_dali(inputs: Inputs, mode: str) -> Call:
    if mode == "fwdbwd":
        raise Unavailable("decoding has no gradient")
    try:
        from nvidia.dali import Pipeline, fn
    except Exception as error:
        raise Unavailable(f"DALI: {error}") from None
    files = [np.frombuffer(file, np.uint8) for file in inputs["files"]]
    pipeline = Pipeline(
        batch_size=len(files),
        num_threads=torch.get_num_threads(),
        device_id=None,
        exec_async=False,
        exec_pipelined=False,
        prefetch_queue_depth=1,
    )
    with pipeline:
        encoded = fn.external_source(source=lambda: files, batch=True)
        pipeline.set_outputs(fn.decoders.image(encoded, device="cpu"))
    pipeline.build()
    if pipeline.run()[0].as_array().shape != (len(files), HEIGHT, WIDTH, 3):
        raise Unavailable("gives no photographs of this size")

    def call() -> dict[str, Tensor]:
        pipeline.run()
        return {}

    return call


CASES = (
    OpBench(
        name="decode_cpu",
        device="cpu",
        title="JPEG files of 500x375 decoded",
        inputs=files_of,
        providers={
            "Pillow": Provider(_decode(_pillow_decode), **PEER),
            "torchvision": Provider(_decode(_torchvision_decode), **PEER),
            "OpenCV": Provider(_decode(_cv2_decode), **PEER),
            "ours, by DALI": Provider(by_dali, **PEER),
        },
        answer=lambda inputs, mode: {},
        bytes_moved=lambda params, mode: params["B"] * 3 * HEIGHT * WIDTH,
        formula="pixels written once",
        flops=lambda params, mode: 0.0,
        sweep=({"B": 32},),
        verdict=images_a_second,
    ),
)
