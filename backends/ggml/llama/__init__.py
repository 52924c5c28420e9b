"""A model running in libllama, watched node by node.

tiny        a model file made on the spot: architectures, shapes.json (harvest), quants
gguf        any model file, its header checked before libllama sees it
session     Model and Context: the front's side of a worker process; decodes, and calls back with each `Node`
worker      the other side: binding, params (structs found by their defaults), observer (the answers to ggml's
            scheduler), joined by the wire and by shared memory
records     what is seen, as plain data: Node, Source, Buffer, Memory
cases       a node as a case of the harness, with its actual inputs
copies      what the scheduler copies from device to device, followed
bench       runs of one script (scripts) on one model, each from the start
whole       the whole graph against node by node; pieces finds the smallest piece that goes wrong
"""
