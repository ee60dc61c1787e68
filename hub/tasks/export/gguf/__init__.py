"""GGUF files for llama.cpp and Ollama: conversion, quantization, importance matrix, and the reader that proves them."""
