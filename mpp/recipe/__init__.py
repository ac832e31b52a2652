"""What is learned: a recipe is a row of choices, and every choice is one file.

    mask x corruption x target x decoder (x teacher)

Each choice is a config section with its knobs (default, unit, source), its code, its trivial baselines and its picture together; one name in
its folder's list makes it known to YAML, words and --help.  Read model.py for what a recipe computes, masks/, targets/ and decoders/ for what
each kind of choice answers to, and masking.py for what is drawn before anybody looks at an image.  Tensors in, tensors out: nothing here knows
files, ranks or DeepSpeed.
"""
