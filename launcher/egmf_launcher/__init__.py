"""How ranks come to be: the hostfile, DeepSpeed's launcher, Ray, and the ``egmf`` command. Top floor."""
