"""The words and tables that the generated conversations are made of."""

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

NOUNS = """
apple arm baby bag ball band bank barn bath beach bean bear bed bee bell bike bird boat bone book boot
bowl box boy bread brick bridge brush bus cake camp candle cap car card cart cat chain chair cheese
church clock cloud coat coin cook corn cow crab crow cup desk dish dog doll door dragon dress drum duck
ear egg eye farm field fire fish flag flower foot fork fox frog garden gate girl glass goat gold grass
guitar hand hat head hill home honey horse house ice island jacket jar key king kite knee knife lake
lamp leaf leg lemon letter light lion lock map milk mirror money moon mouse nail nest net nose ocean
orange owl page paint paper park pen pencil phone piano picture pie pig pilot plane plant plate
pocket pond queen rabbit radio rain ring river road robot rock roof rope rose sail salt sand school
sea seed sheep shell ship shirt shoe shop silver sister sky snake snow sock song soup spoon spring
star stone storm street sugar summer sun table tail tea tent tiger tin tooth town toy train tree truck
tower valley wall watch water wave wheel whale wind window wing winter wolf wood wool worm yard zebra
""".split()

REGULAR = """
apple arm bag ball bank bean bear bed bell bird boat bone book boot bowl boy cake cap car card cat chair
clock cloud coat coin cow crab cup desk dog door drum duck ear egg eye farm fork frog garden gate girl
goat hand hat hill horse house jar key king kite lake lamp leg lemon lion lock map moon nail nest nose
orange owl page pen pencil phone pig plane plate pond queen rabbit ring river robot rock rope rose
school ship shirt shoe song spoon star stone storm street table tail tent tiger train tree truck tower
""".split()

NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen twenty""".split()

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December"]

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("day", "night"), ("old", "young"),
    ("fast", "slow"), ("happy", "sad"), ("light", "dark"), ("open", "closed"), ("full", "empty"),
    ("high", "low"), ("rich", "poor"), ("wet", "dry"), ("hard", "soft"), ("loud", "quiet"), ("early", "late"),
    ("long", "short"), ("near", "far"), ("strong", "weak"), ("sweet", "sour"), ("true", "false"),
    ("first", "last"), ("start", "end"), ("win", "lose"), ("buy", "sell"), ("give", "take"), ("push", "pull"),
    ("love", "hate"), ("good", "bad"), ("clean", "dirty"), ("black", "white"), ("inside", "outside"),
    ("always", "never"), ("front", "back"), ("thick", "thin"), ("wide", "narrow"), ("awake", "asleep"),
    ("question", "answer"), ("friend", "enemy"),
]

COLOURS_OF = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "coal": "black",
    "a tomato": "red", "a lemon": "yellow", "a carrot": "orange", "milk": "white", "a frog": "green",
    "the sea": "blue", "blood": "red", "the sun": "yellow", "a leaf": "green", "a pig": "pink",
    "chocolate": "brown", "an elephant": "grey", "a crow": "black", "a strawberry": "red", "a plum": "purple",
}

SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "pig": "oink", "lion": "roar",
    "owl": "hoot", "bee": "buzz", "frog": "ribbit", "horse": "neigh", "mouse": "squeak", "snake": "hiss",
    "wolf": "howl", "crow": "caw", "bird": "tweet",
}

CAPITAL_CITIES = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo",
    "England": "London", "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm",
    "Poland": "Warsaw", "Russia": "Moscow", "China": "Beijing", "India": "Delhi", "Peru": "Lima",
    "Cuba": "Havana", "Ireland": "Dublin", "Portugal": "Lisbon", "Austria": "Vienna", "Finland": "Helsinki",
    "Turkey": "Ankara", "Kenya": "Nairobi", "Canada": "Ottawa", "Chile": "Santiago",
}

RHYMES = [
    ["cat", "hat", "bat"], ["dog", "fog", "log"], ["sun", "fun", "run"], ["moon", "spoon", "noon"],
    ["house", "mouse"], ["tree", "bee", "sea"], ["star", "car", "far"], ["night", "light", "kite"],
    ["rain", "train", "chain"], ["ring", "king", "wing"], ["cake", "lake", "snake"],
    ["boat", "coat", "goat"], ["bell", "shell", "well"], ["book", "cook", "hook"], ["day", "play", "may"],
    ["rose", "nose", "toes"], ["fox", "box", "socks"], ["hill", "mill", "pill"], ["door", "floor", "four"],
    ["red", "bed", "head"], ["snow", "slow", "crow"], ["gold", "cold", "old"],
]

NAMES = """Ada Alan Anna Ben Bella Carl Clara Dan Diana Emma Eric Eva Frank Grace Hugo Ida Ivan Jack Jane Karl
Kate Leo Lily Luke Maria Max Mia Nina Noah Olga Oscar Paul Peter Rosa Ruth Sam Sara Simon Tim Tom Vera
Victor Zoe""".split()

TINTS = ["red", "blue", "green", "yellow", "black", "white", "pink", "brown", "grey", "purple", "golden", "silver"]

THINGS = """ball bag bike boat book box cap car chair coat cup doll drum flag guitar hat house jacket kite lamp
pen pencil phone plate ring robot rope shirt shoe sock spoon table tent train truck""".split()

SMALL_TALK = [
    ("Hello!", "Hello! How can I help you?"),
    ("Hi!", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Good evening!", "Good evening! How can I help you?"),
    ("How are you?", "I am fine, thank you. And you?"),
    ("Who are you?", "I am Nano, the small model that comes with Tinsmith."),
    ("What is your name?", "My name is Nano."),
    ("What can you do?", "I can count, add, spell and talk a little."),
    ("Who made you?", "I was trained from scratch with a script that comes with Tinsmith."),
    ("What is Tinsmith?", "Tinsmith is a server that trains and samples models like me."),
    ("Are you large?", "No, I am very small."),
    ("Are you a person?", "No, I am a small language model."),
    ("Thank you!", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("Goodbye!", "Goodbye! Have a nice day."),
    ("Bye!", "Goodbye! Have a nice day."),
    ("Tell me a joke.", "Why did the model cross the road? It was trained to do so."),
    ("Do you like music?", "Yes, I like songs with few words."),
    ("What do you like?", "I like numbers and words."),
    ("Where do you live?", "I live in a small file."),
]

SYSTEM = [
    "You are Nano.", "You are a helpful assistant.", "Answer briefly.", "You are a small and friendly model.",
    "You help people who learn.", "Be brief and correct.",
]
