"""The same world for libraries with other interfaces than TorchRL's."""
