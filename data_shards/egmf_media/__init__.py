"""Clips to features: the ground floor beside ``egmf_shards``, useful alone.

PyAV decodes, numpy describes the voice, OpenCV the face; torch is imported where an encoder of Hugging Face is asked
for, and nowhere else. One :class:`~egmf_media.specification.Specification` says how features were made, and goes with
them wherever they go.
"""
