"""Every setting of masked (V9) training: one plain dict, the named recipes and the demo's changes to it. No code.

Paths given here are relative to this repository; paths given on the command line are relative to the folder the
command is run in. ``--key value`` overrides any key, ``--config config_notmask`` takes the other dict; how they are
read and checked is in Script_tools/settings.py.
"""

config = {
    # --- data -------------------------------------------------------------------------------------------------------
    "raw_data_path": "Datasets/vggface2_train",  # photos as downloaded, one folder per person
    "train_data_path": "Datasets/vggface2_train_face_mask",  # aligned faces to train on; packs of pack_faces.py
    # ^ may stand in place of this folder and the next two
    "notmask_data_path": "Datasets/vggface2_train_face_notmask",  # the same faces without masks
    "mask_data_path": "Datasets/vggface2_train_mask_notmask",  # attention targets: white = face above the mask
    "train_data_index": "Datasets/vggface2_train_face_mask.csv",  # id,name,class of the training faces
    "manifest_path": "Datasets/vggface2_train_manifest.csv",  # landmarks, for new masks and bare faces
    "train_people": None,  # text file, one name a line: use only these people
    "LFW_data_path": "Datasets/lfw_funneled",  # test photos
    "LFW_pairs": "Datasets/LFW_pairs.txt",  # test pairs
    "NOTLFW_data_path": None,  # another test set of the same form
    "NOTLFW_pairs": None,  # its pairs
    "select_pairs": None,  # pairs (of LFW_data_path) on which best.pt is chosen; None: LFW masked, as in the recipe
    "cache_path": "Datasets/cache",  # aligned test faces, made once; faces.sqlite: embeddings of photos searched in
    "output_path": ".",  # logs/, Model_training_checkpoints/ and ROC_images/ are written here
    "predictor_path": "Data_preprocessing/shape_predictor_68_face_landmarks.dat",  # dlib's 68-landmark model
    "detector": "dlib",  # which finds and aligns faces: dlib (68 landmarks), yunet (OpenCV's, five points)
    "padding": 0.25,  # room around an aligned face, as a share of its size
    # --- faces as they are shown; the recipe: as they were prepared, all masked ------------------------------------
    "mask_kinds": ["flat"],  # flat, surgical, cloth, printed, black, respirator: drawn by Image_processing.py, or anew
    "masks": "stored",  # stored: the faces of train_data_path; new: drawn anew on notmask_data_path's each time
    "unmasked_share": 0.0,  # of the images, shown without a mask
    "flip": False,  # mirror half of the images
    "jitter": 0.0,  # of the alignment; 1: as much as a mask moves it (3.5 degrees, 10 % in size, 4.5 % of the width)
    "photo_jitter": 0.0,  # of brightness, contrast, colour, sharpness; 1: plainly visible
    "tight_share": 0.0,  # of the images, cut off near the face, as face detectors and users cut photos: black beyond
    "mix": 0.0,  # share of the faces blended with another person's, before the mask: new people, whom only a teacher
    # ^ can tell anything of; needs masks = new, a teacher, and triplet_weight = 0
    "test_seed": 0,  # of test faces' masks, whatever the training's seed: all runs are chosen and scored on the same
    "test_masks": "flat",  # of test faces: one kind; kinds: all; realigned: all, and the face found anew; as_is: none
    # ^ is drawn, the photos show real ones
    # --- network ----------------------------------------------------------------------------------------------------
    "trunk": "resnet",  # resnet; dlib, sface: networks that have seen millions of faces; both: side by side
    "dlib_weight": 0.65,  # both: of dlib's squared distance in theirs; SFace's has the rest
    "model": 34,  # depth of the ResNet: 18, 34, 50, 101, 152
    "attention": "supervised",  # face attention branch: none, free (without target), supervised
    "attention_weight": 1.0,  # of the attention loss in the total loss
    "cbam": True,  # channel and spatial attention in every residual block
    "pretrained": False,  # start from torchvision's ImageNet weights
    "init_from": None,  # a checkpoint: start from its weights; what has another shape starts anew
    "train_straightener": False,  # a straightener that init_from brings along learns too, not the networks behind alone
    "image_size": 256,  # px, square
    "embedding_dim": 256,  # numbers of an embedding
    # --- loss -------------------------------------------------------------------------------------------------------
    "embedding_scale": 10.0,  # length of an embedding while training; 1 when validating
    "margin": 0.5,  # on that scale
    "triplet_weight": 1.0,  # of the triplet loss in the total loss
    "teacher": "none",  # dlib, sface, both: its descriptor of the unmasked face is the target, masked or not
    "teacher_centred": False,  # take its mean descriptor off first: its cone of directions becomes a whole sphere
    "teacher_weight": 1.0,  # of the squared distance to that target in the total loss
    # --- training ---------------------------------------------------------------------------------------------------
    "optimizer": "adagrad",  # adagrad, sgd, rmsprop, adam, adamw
    "momentum": 0.9,  # of sgd (Nesterov's)
    "weight_decay": 0.0,  # of weights, not of biases and batch normalisation
    "clip_gradients": 0.0,  # to this length, of all weights' together; 0: never
    "accumulate": 1,  # batches whose gradients make one step
    "sync_batch_norm": False,  # several GPUs normalise with the statistics of all their images, not each with its own
    "ema_decay": 0.0,  # such as 0.999: a moving average of the weights is validated and saved; 0: they themselves
    "learning_rate_schedule": [(0, 0.125), (19, 0.0625), (60, 0.0155), (90, 0.003), (120, 0.0001), (160, 0.00006)],
    # ^ (first epoch, counted from 0; learning rate)
    "rate_decay": "none",  # cosine: the schedule's rate falls to 0 over the run, after a rise over its first 2 %
    "epochs": 190,  # of num_train_triplets each
    "images": None,  # that pass forward in all: num_train_triplets, or epochs where that is given too, follows from it
    "patience": None,  # stop after so many epochs without a better selection AUC
    "train_batch_size": 20,  # triplets (three images each) of a process, so of a GPU; 20 take 2 to 4 GB at 256 px.
    # ^ torchrun with K processes makes steps on K times as many; the recipe's steps are those on 20 in all
    "test_batch_size": 64,  # images
    "num_train_triplets": 100000,  # an epoch
    "mining": "random",  # random: triplets drawn at random (the recipe); mined: negatives from the nearest people by
    # ^ the embeddings before each epoch; batch: triplets are sought among a batch's faces, and every face comes in turn
    "mined_faces": 20000,  # mined: so many faces of the index are embedded
    "batch_photos": 4,  # batch: photos of one person in a batch, where there are so many
    "batch_triplets": "semihard",  # batch: semihard, hardest
    "triplets": "fixed",  # random: fixed: one random table for all epochs (the recipe); new: one table per epoch
    "packed": False,  # look at triplets without gradient first and train on full batches of hard ones: fewer steps
    "precision": "auto",  # auto: half precision on CUDA, float32 on the CPU; float32; bfloat16: where it is fast
    "compile": False,  # torch.compile: half a minute or more at the start for faster steps; needs a C++ compiler
    "activation_checkpointing": False,  # compute each block twice instead of keeping its activations: less memory
    "num_workers": None,  # processes that load images, for each training process; None: its share of cores, up to 32
    "seed": 0,  # of triplets, masks, first weights
    "deterministic": False,  # on CUDA the same figures with every start, where kernels allow it (a warning says where
    # ^ not); slower
    "validate_first": False,  # once before the first epoch as well: what the network is worth that the run begins with
    "validate_every": 1,  # epochs between two validations; the last epoch always has one
    "tensorboard": False,  # write the figures for TensorBoard as well (pip install tensorboard)
    "save_every": 1,  # epochs between two epoch_NNN.pt
    "keep_last": 3,  # of them, the newest, beside best.pt and last.pt; 0: all
    "save_every_minutes": 15.0,  # between two writings of last.pt within an epoch; 0: only when its last step is made
}

# Named changes to the recipe: python train_maskV9.py --recipe NAME. The first is what we would train with today, the
# others are for comparison: each is a row of benchmarks/accuracy.csv.
BEST = {
    "images": 600000,
    "epochs": 20,
    "masks": "new",
    "mask_kinds": ["flat", "surgical", "cloth", "printed", "black", "respirator"],
    "unmasked_share": 0.4,
    "flip": True,
    "jitter": 0.6,
    "photo_jitter": 0.2,
    "model": 18,
    "image_size": 80,
    "embedding_dim": 128,
    "triplet_weight": 0.0,
    "teacher": "dlib",
    "teacher_centred": True,
    "mining": "batch",
    "batch_photos": 2,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "learning_rate_schedule": [(0, 0.002)],
    "rate_decay": "cosine",
    "precision": "bfloat16",
}
TRUNKS = {
    **BEST,
    "images": 400000,
    "epochs": 8,
    "trunk": "both",
    "teacher": "both",
    "teacher_centred": False,
    "attention_weight": 0.02,
    "detector": "yunet",
    "padding": 0.625,
    "image_size": 168,
    "embedding_dim": 256,
    "jitter": 1.0,
    "photo_jitter": 0.3,
    "tight_share": 0.4,
    "mix": 0.35,
    "train_straightener": True,
    "mining": "random",
    "triplets": "new",
    "train_batch_size": 64,
    "learning_rate_schedule": [(0, 0.0002)],
}
RECIPES = {
    "best": BEST,
    # goes on from a best.pt of "best" (--init_from PATH): as much jitter as a mask causes, half of the faces blended
    "best_on": {**BEST, "jitter": 1.0, "mix": 0.5, "learning_rate_schedule": [(0, 0.0011)]},
    "best_on_unblended": {**BEST, "jitter": 1.0, "learning_rate_schedule": [(0, 0.0011)]},
    # dlib's network and SFace side by side, each trained on from its own weights to see through masks what it sees
    # without; the faces are prepared so (--image_size 168 --padding 0.625 --detector yunet)
    "trunks": TRUNKS,
    "v9": {},
    "plain": {"cbam": False, "attention": "none"},
    "cbam": {"attention": "none"},
    "free": {"attention": "free"},
    "unmasked": {"unmasked_share": 1.0},
    "half_unmasked": {"unmasked_share": 0.5},
    "mined": {"mining": "mined"},
    "batch": {"mining": "batch"},
}

# What `python train_maskV9.py --demo` changes: drawn faces, a small network, a short schedule; the code is the same.
DEMO = {
    "output_path": "Datasets_demo",  # so that its network of drawn faces is nobody's newest best.pt
    "raw_data_path": "Datasets_demo/drawn_train",
    "manifest_path": "Datasets_demo/drawn_train_manifest.csv",
    "train_data_path": "Datasets_demo/drawn_train_face_mask",
    "notmask_data_path": "Datasets_demo/drawn_train_face_notmask",
    "mask_data_path": "Datasets_demo/drawn_train_mask_notmask",
    "train_data_index": "Datasets_demo/drawn_train_face_mask.csv",
    "LFW_data_path": "Datasets_demo/drawn_test",
    "LFW_pairs": "Datasets_demo/drawn_test_pairs.txt",
    "cache_path": "Datasets_demo/cache",
    "model": 18,
    "image_size": 80,
    "embedding_dim": 128,
    "learning_rate_schedule": [(0, 0.125), (3, 0.0625)],
    "epochs": 5,
    "num_train_triplets": 800,
    "num_workers": 0,
}

# How many people and photos the demo draws to train on and to test on, and how many pairs it tests.
DEMO_FACES = {
    "train_people": 60,
    "train_photos": 12,
    "test_people": 40,
    "test_photos": 6,
    "folds": 10,
    "pairs": 60,  # same pairs a fold, and as many different ones
}
