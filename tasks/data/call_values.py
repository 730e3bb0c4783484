"""More slot values for training on function calls: with a handful per slot a model learns them instead of copying.

None of them occurs among the test values of `tasks.data.intent_phrases`. The wording is our own.
"""

from __future__ import annotations


def _values(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


MORE_VALUES: dict[str, tuple[str, ...]] = {
    "day": _values(
        "in two days | next month | on the weekend | on saturday | on tuesday | tomorrow night | this "
        "afternoon | in the morning | on the third of may | every day | next friday | on christmas eve"
    ),
    "time": _values(
        "9:15 | 2 pm | midnight | ten past four | half past ten | 7 am | 18:20 | five to six | eight sharp | "
        "11:05 | one o'clock | quarter past three | 6 am | three thirty"
    ),
    "duration": _values(
        "an hour | seven minutes | 15 minutes | three quarters of an hour | 40 seconds | twelve hours | one "
        "minute | 25 minutes | an hour and a half | 8 minutes | two and a half minutes | six hours"
    ),
    "person": _values(
        "peter | my sister | aunt rosa | the plumber's office | doctor weber | my wife | john | emily | the "
        "babysitter | professor klein | my cousin | the front desk | granny | mrs lopez | ben | the school "
        "office | olivia | my daughter"
    ),
    "task": _values(
        "clean the windows | buy stamps | mow the lawn | wash the car | print the tickets | cancel the gym | "
        "write to the tax office | empty the dishwasher | back up my laptop | walk the dog | order new "
        "glasses | iron my shirt | check the oil | sign the contract"
    ),
    "event": _values(
        "dinner | the choir rehearsal | a job interview | the dance class | the house viewing | swimming | "
        "the quarterly meeting | a phone conference | my driving test | the book club | a massage | the "
        "wedding | coffee"
    ),
    "news": _values(
        "the heating is broken | i got the job | we are out of petrol | the cake is ready | my flight lands "
        "at nine | it was a lovely evening | the dog ate my homework | i will be ten minutes late | the "
        "tickets are sold out | my battery is almost empty | we moved the sofa | the doctor can see me now | "
        "school is closed | i left the key under the mat"
    ),
    "music": _values(
        "techno | country | my running playlist | an opera | christmas songs | soft rock | a podcast | some "
        "soul | hip hop | the radio | wave sounds | piano ballads | heavy metal | swing"
    ),
    "artist": _values(
        "bach | madonna | abba | louis armstrong | johnny cash | adele | chopin | david bowie | ella "
        "fitzgerald | the rolling stones | daft punk | prince | billie holiday"
    ),
    "room": _values(
        "attic | guest room | study | corridor | cellar bar | playroom | pantry | laundry room | conservatory"
        " | entrance | workshop | porch | library"
    ),
    "level": _values(
        "ten percent | full | 3 | two thirds | 50 percent | the lowest setting | 7 | medium | ninety percent "
        "| half brightness | 1 | eighty five percent"
    ),
    "degrees": _values(
        "20 degrees | seventeen degrees | 66 fahrenheit | 22 and a half | twenty four degrees | 19 degrees | "
        "sixteen | 72 fahrenheit | 18 degrees | twenty one and a half"
    ),
    "city": _values(
        "london | new york | the lake | berlin | sydney | lisbon | the black forest | nairobi | toronto | "
        "rome | vienna | seattle | the valley | mumbai"
    ),
    "place": _values(
        "the hospital | the next petrol station | the theatre | grandma's house | the zoo | the cinema | the "
        "post office | the city library | the swimming pool | school | the cheapest hotel | the train station"
        " | the market square"
    ),
    "item": _values(
        "bread | eggs | olive oil | a bag of rice | washing powder | three onions | cheese | cat litter | "
        "light bulbs | orange juice | a pack of sugar | napkins | salt | two bottles of water | yoghurt"
    ),
    "food": _values(
        "rice | beans | steaks | cakes | mushrooms | pancakes | sausages | beets | dumplings | waffles | apples | peas"
    ),
}
