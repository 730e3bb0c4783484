"""What people say to their assistant: phrasings per intent and the values of their slots.

Every entry has two lists, ``train`` and ``test``, that share nothing: the test set asks for the same things in words
and with names, times and places that no device has ever seen. The wording is our own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Side = Literal["train", "test"]


class Sides(NamedTuple):
    """The two disjoint lists of one intent or slot."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def choices(text: str) -> tuple[str, ...]:
    """Return the parts of a text between upright bars."""
    return tuple(part.strip() for part in text.split("|"))


def _sides(train: str, test: str) -> Sides:
    return Sides(choices(train), choices(test))


PHRASES: dict[str, Sides] = {
    "alarm_set": _sides(
        "wake me up {day} at {time} | set an alarm for {time} | i have to get out of bed by {time} {day} | "
        "ring at {time} {day} | i need an alarm {day} at {time} | make sure i am awake at {time} | put the alarm on "
        "{time} | "
        "get me out of bed at {time} | i want to be up by {time} {day} | "
        "let the alarm clock ring at {time} {day} | i must not oversleep {day}",
        "get me up at {time} {day} | i need to be awake by {time} {day} | new alarm, {time} {day} | "
        "have the alarm ring {day} at {time} | don't let me sleep past {time} | wake-up call {day} at {time}",
    ),
    "timer_start": _sides(
        "start a timer for {duration} | set the timer to {duration} | {duration} on the timer | "
        "count down {duration} | time {duration} for the {food} | i need a {duration} countdown | "
        "run a timer of {duration} for the {food} | let it ring in {duration} | the {food} take {duration} | "
        "warn me in {duration} | ping me after {duration} | tell me when the {food} are done in {duration}",
        "new timer, {duration} | give me a timer for {duration} | begin a countdown of {duration} | "
        "tell me when {duration} are over | let the timer run for {duration} | "
        "beep after {duration} because of the {food}",
    ),
    "reminder_add": _sides(
        "remind me to {task} {day} | set a reminder to {task} | don't let me forget to {task} | "
        "remind me at {time} to {task} | i need a reminder {day} to {task} | "
        "remember that i have to {task} {day} | help me remember to {task} | "
        "i must not forget to {task} {day} | note to self: {task} at {time} | nudge me {day} to {task} | "
        "set a reminder for {time} | remind me about {event} {day}",
        "make a reminder to {task} | remind me {day} about having to {task} | i need to be reminded to {task} | "
        "i always forget to {task}, remind me {day} | give me a reminder at {time} | "
        "keep in mind for me: {task} {day}",
    ),
    "event_create": _sides(
        "put {event} in my calendar {day} | schedule {event} for {day} at {time} | add {event} with {person} to my "
        "calendar | "
        "create an appointment {day} at {time} | book {event} {day} at {time} | plan {event} with {person} {day} | "
        "i have {event} with {person} {day} at {time}, put it in | keep {day} at {time} free for {event} | "
        "set up {event} with {person} | note {event} for {day}",
        "make an appointment with {person} {day} | put {event} on the calendar at {time} | "
        "arrange {event} with {person} {day} | new calendar entry {day}: {event} | "
        "block {time} {day} for {event} | pencil in {event} {day}",
    ),
    "music_play": _sides(
        "play {music} | put on some {music} | i want to hear {music} | play {music} in the {room} | "
        "start the {music} playlist | play something by {artist} | next song by {artist} | "
        "let me hear {artist} | give me some {music} | how about {music} | turn on {music} | "
        "the best of {artist} in the {room}",
        "let us listen to {music} | i am in the mood for {music} | some {artist} would be nice | "
        "shuffle songs by {artist} | get the {music} going | can i have {music} in the {room}",
    ),
    "message_send": _sides(
        "text {person} that {news} | send a message to {person} | write to {person} that {news} | "
        "message {person}: {news} | tell {person} by text that {news} | answer {person} that {news} | "
        "text {person} back | write {person} a message | new text message to {person} | "
        "inform {person} that {news} | let {person} hear that {news} | send my answer to {person} | "
        "text my reply to {person}: {news}",
        "drop {person} a message that {news} | send {person} a text | let {person} know that {news} | "
        "compose a text message for {person} | reply to {person} that {news} | write back to {person}",
    ),
    "call_make": _sides(
        "call {person} | phone {person} {day} | make a call to {person} | dial the number of {person} | "
        "start a video call with {person} | call {person} back | ring up {person} on speaker | "
        "i want to talk to {person} | get me {person} | put me in touch with {person} | "
        "let me speak with {person} | reach {person} on the phone",
        "get {person} on the line | i need to speak to {person} now | connect me with {person} | "
        "place a call to {person} | try calling {person} | put me through to {person}",
    ),
    "light_change": _sides(
        "turn on the lights in the {room} | switch the {room} lights off | dim the light in the {room} | "
        "set the {room} light to {level} | lights out in the {room} | make the lamp in the {room} brighter | "
        "lights to {level} | "
        "it is dark in the {room} | more light in the {room} | shut off the lamps in the {room} | "
        "i left the light on in the {room} | the {room} is too bright",
        "it is too dark in the {room} | lights on in the {room} | darken the {room} lights | "
        "set the lamp in the {room} to {level} | brighten up the {room} | the lamps in the {room} can go off",
    ),
    "heating_change": _sides(
        "set the thermostat to {degrees} | turn up the heating in the {room} | make the {room} warmer | "
        "lower the temperature in the {room} to {degrees} | heat the {room} to {degrees} {day} | "
        "switch off the heating | it is too cold in the {room} | "
        "i am cold | it is much too hot in the {room} | cool the {room} to {degrees} | "
        "i want {degrees} in the {room} | my feet are freezing in the {room}",
        "i am freezing in the {room} | keep the {room} at {degrees} | "
        "let the heater in the {room} run at {degrees} | warm up the {room} | turn down the thermostat {day} | "
        "the {room} feels like an oven",
    ),
    "weather_query": _sides(
        "what is the weather in {city} | will it rain {day} | how warm is it in {city} {day} | "
        "weather forecast for {day} | is it going to snow in {city} | what is the temperature in {city} | is it sunny "
        "{day} | "
        "do i need a jacket {day} | how is the weather {day} | is there a storm in {city} | "
        "how hot will it be {day} | can i wear shorts in {city} {day}",
        "do i need an umbrella {day} | what is the forecast for {city} | how cold does it get {day} | "
        "will there be sunshine in {city} {day} | is there rain coming {day} | "
        "what is it like outside in {city}",
    ),
    "route_find": _sides(
        "how do i get to {place} | navigate to {place} | show me the way to {place} | directions to {city} | "
        "how long does it take to drive to {place} | find a route to {place} in {city} | how far is it to {city} | "
        "where is {place} | bring me to {place} | i want to go to {place} | how is the traffic to {city} | "
        "which train goes to {city} | when do i have to leave for {place}",
        "take me to {place} | which bus goes to {place} | guide me to {place} | "
        "what is the fastest way to {city} | how many miles is it to {place} | i am lost, get me to {place}",
    ),
    "list_add": _sides(
        "add {item} to my shopping list | put {item} on the list | we need {item} | write {item} on the grocery list | "
        "buy {item} | i have to buy {item} {day} | add {item} and {food} to the list | "
        "{item} is missing | we are out of {item} | get {item} at the store | "
        "there are no {food} in the house | don't forget {item} at the supermarket",
        "we are running out of {item} | there is no {item} left | pick up {item} next time i shop | "
        "shopping list: {item} | include {item} in the groceries | note that we need {item} and {food}",
    ),
}

SLOTS: dict[str, Sides] = {
    "day": _sides(
        "tomorrow | on monday | tonight | on friday | this weekend | next tuesday | today",
        "on thursday | the day after tomorrow | this evening | next sunday | on wednesday",
    ),
    "time": _sides(
        "seven | half past six | 8 am | 5:30 | noon | quarter to nine | 10 pm",
        "6:45 | twenty past seven | 4 pm | eleven | a quarter past eight",
    ),
    "duration": _sides(
        "ten minutes | half an hour | 45 seconds | two hours | 20 minutes",
        "five minutes | 90 seconds | three hours | a quarter of an hour",
    ),
    "person": _sides(
        "anna | my mother | david | the dentist | doctor miller | my boss | maria | uncle tom",
        "sophie | my brother | the landlord | mister chen | grandma | lukas | my neighbour",
    ),
    "task": _sides(
        "water the plants | pay the rent | take my medicine | call the bank | feed the cat | book the train | send "
        "the report",
        "renew my passport | defrost the chicken | charge the car | text the plumber | "
        "return the library books | message the school",
    ),
    "event": _sides(
        "lunch | the team meeting | a dentist appointment | the parent evening | yoga class | the budget review",
        "a haircut | the piano lesson | the project kickoff | a birthday party | the car inspection",
    ),
    "news": _sides(
        "lunch was great | i lost my wallet | the lights are out again | i found a parking spot | the baby is asleep | "
        "i am running late | the meeting is cancelled | dinner is at eight | i am on my way | the package is here",
        "the train is delayed | i can't find my keys | we won the match | supper is in the oven | it rains over here",
    ),
    "music": _sides(
        "jazz | my workout mix | classical piano | nineties rock | rain sounds | the new album",
        "blues | some reggae | film scores | folk ballads | a lullaby",
    ),
    "artist": _sides("mozart | queen | the beatles | miles davis", "vivaldi | nina simone | pink floyd | bob marley"),
    "room": _sides(
        "kitchen | bedroom | living room | hall | office", "bathroom | garage | nursery | dining room | basement"
    ),
    "level": _sides("thirty percent | maximum | 5 | a half", "seventy percent | minimum | 8 | a quarter"),
    "degrees": _sides(
        "21 degrees | nineteen degrees | 68 fahrenheit", "23 degrees | eighteen and a half | 70 fahrenheit"
    ),
    "city": _sides("paris | boston | the mountains | tokyo | oslo", "madrid | chicago | the coast | cairo | dublin"),
    "place": _sides(
        "the airport | the nearest pharmacy | the museum | work | the central station",
        "the stadium | the closest bakery | the harbour | home | the town hall",
    ),
    "item": _sides(
        "milk | coffee | two lemons | toothpaste | dog food | batteries",
        "butter | green tea | a dozen bananas | shampoo | tissues | flour",
    ),
    "food": _sides("eggs | pasta | potatoes | cookies", "lentils | noodles | carrots | muffins"),
}

# Clauses before the command that speak of something else: words alone do not give the intent away.
CHATTER = _sides(
    "the music was great yesterday | i just got off the phone with {person} | it is cold outside | my calendar is a "
    "mess | "
    "the lights were on all night | i nearly missed my alarm | {person} sent me the list | the timer is still running "
    "| "
    "we drove through {city} | i forgot the milk again | {person} and i had a meeting",
    "that song is stuck in my head | {person} keeps texting me | what lovely weather | i overslept | "
    "the lamp is broken again | the drive home took ages | my diary is full | the oven is still warm | i bought too "
    "much bread",
)
