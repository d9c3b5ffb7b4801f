"""The live side: device agent, edge server, broker and link shaper over MQTT.

Runs with the base install alone (numpy, onnxruntime, paho-mqtt, pydantic, pillow, zstandard): no gymnasium,
stable-baselines3, torch or numba. The parts, from pure to real:

* ``messages``, ``control``, ``topics``: what travels, as bytes and as JSON;
* ``session``, ``edge_session``: what device and edge do, as pure state machines ``(event, now) -> actions``;
* ``transport``, ``mqtt``: how messages travel, in memory (tests) or by MQTT;
* ``device``, ``edge``, ``broker``, ``shaper``: the four processes; ``live`` runs them together.
"""
