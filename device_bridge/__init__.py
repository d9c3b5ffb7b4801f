"""The live side: device agent, edge server, broker and link shaper over MQTT.

Runs with the base install alone (numpy, onnxruntime, paho-mqtt, pydantic, pillow, zstandard): no gymnasium,
stable-baselines3, torch or numba. The parts, from pure to real:

* ``messages``, ``control``, ``topics``: what travels, as bytes and as JSON;
* ``session``, ``edge_session``: what device and edge do, as pure state machines ``(event, now) -> actions``;
* ``transport``, ``mqtt``: how messages travel, in memory (tests) or by MQTT;
* ``device``, ``edge``, ``decision_service``, ``broker``, ``shaper``: the processes; ``live`` runs them together;
* ``parts``: what hangs onto a device: ``commands``, ``policy_*`` (updates over the air), ``metrics``, ``advice``;
* ``contract``, ``conformance_*``: the numbered rules, and what checks a running fleet against them.
"""
