"""What people say to their assistant: phrasings per intent and the values of their slots.

Every entry has two lists, ``train`` and ``test``, that share nothing: the test set asks for the same things in words and
with names, times and places that no device has ever seen. The wording is our own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Side = Literal["train", "test"]


class Sides(NamedTuple):
    """The two disjoint lists of one intent or slot."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def _sides(train: str, test: str) -> Sides:
    return Sides(*(tuple(part.strip() for part in text.split("|")) for text in (train, test)))


PHRASES: dict[str, Sides] = {
    "alarm_set": _sides(
        "wake me up {day} at {time} | set an alarm for {time} | i have to get out of bed by {time} {day} | "
        "ring at {time} {day} | i need an alarm {day} at {time} | make sure i am awake at {time} | put the alarm on {time} | "
        "get me out of bed at {time} | i want to be up by {time} {day} | "
        "let the alarm clock ring at {time} {day} | i must not oversleep {day}",
        "get me up at {time} {day} | don't let me sleep past {time} | i must be up before {time} {day} | "
        "start ringing at {time} so that i get up | my morning begins at {time} {day}",
    ),
    "alarm_cancel": _sides(
        "cancel the alarm for {time} | turn off the alarm {day} | delete my {time} alarm | no alarm {day} | "
        "remove the alarm at {time} {day} | i don't need the {time} alarm any more | switch the alarm off | "
        "don't wake me {day} | i want to sleep longer {day} | stop the alarm at {time} | "
        "no need to wake me at {time} {day} | skip the alarm {day}",
        "let me sleep in {day} | forget about waking me at {time} | skip the wake-up call {day} | "
        "you don't have to wake me {day} | scrap the one that goes off at {time}",
    ),
    "timer_start": _sides(
        "start a timer for {duration} | set the timer to {duration} | {duration} on the timer | count down {duration} | "
        "time {duration} for the {food} | i need a {duration} countdown | run a timer of {duration} for the {food} | "
        "let it ring in {duration} | the {food} take {duration} | warn me in {duration} | "
        "ping me after {duration} | tell me when the {food} are done in {duration}",
        "tell me when {duration} are over | the {food} need {duration} from now | beep after {duration} | "
        "let me know once {duration} have passed | measure {duration} for my {food}",
    ),
    "reminder_add": _sides(
        "remind me to {task} {day} | set a reminder to {task} | don't let me forget to {task} | "
        "remind me at {time} to {task} | i need a reminder {day} to {task} | remember that i have to {task} {day} | "
        "help me remember to {task} | i must not forget to {task} {day} | note to self: {task} at {time} | "
        "nudge me {day} to {task}",
        "give me a nudge about having to {task} | i always forget to {task}, help me {day} | make sure that i {task} {day} | "
        "tell me {day} that i still have to {task} | keep in mind for me: {task} at {time}",
    ),
    "event_create": _sides(
        "put {event} in my calendar {day} | schedule {event} for {day} at {time} | add {event} with {person} to my calendar | "
        "create an appointment {day} at {time} | book {event} {day} at {time} | plan {event} with {person} {day} | "
        "i have {event} with {person} {day} at {time}, put it in | keep {day} at {time} free for {event} | "
        "set up {event} with {person} | note {event} for {day}",
        "block {time} {day} for {event} | i am meeting {person} {day} for {event}, note it down | "
        "pencil in {event} at {time} | reserve my {time} slot {day} for {person} | enter {event} {day}",
    ),
    "event_query": _sides(
        "what is on my calendar {day} | do i have anything planned {day} | when is {event} | show my appointments {day} | "
        "am i free {day} at {time} | what time is {event} with {person} | which meetings do i have {day} | "
        "what do i have to do {day} | how does {day} look | tell me my schedule {day} | is {day} still open | "
        "how full is my day {day} | where do i have to be at {time}",
        "how busy am i {day} | what does my schedule look like {day} | is there something at {time} {day} | "
        "who am i meeting {day} | how long until {event}",
    ),
    "music_play": _sides(
        "play {music} | put on some {music} | i want to hear {music} | play {music} in the {room} | "
        "start the {music} playlist | play something by {artist} | next song by {artist} | "
        "let me hear {artist} | give me some {music} | how about {music} | turn on {music} | "
        "the best of {artist} in the {room}",
        "let us listen to {music} | i am in the mood for {music} | some {artist} would be nice | "
        "shuffle everything from {artist} | get the {music} going",
    ),
    "volume_change": _sides(
        "turn the volume up | make it louder in the {room} | set the volume to {level} | turn it down a bit | "
        "lower the volume to {level} | it is too loud | volume {level} in the {room} | "
        "speak up | i can't hear you in the {room} | bring it down to {level} | mute the sound | "
        "not so loud, {person} is asleep",
        "i can hardly hear this | quieter in the {room} | crank it to {level} | hush it, the baby sleeps | "
        "bring the sound to {level}",
    ),
    "message_send": _sides(
        "text {person} that {news} | send a message to {person} | write to {person} that {news} | "
        "message {person}: {news} | tell {person} that {news} | answer {person} that {news} | "
        "inform {person} that {news} | say to {person} that {news} | let {person} hear that {news} | "
        "text {news} to {person} | i want {person} to know that {news} | respond to {person} that {news}",
        "let {person} know that {news} | drop {person} a line | {person} should hear that {news} | "
        "reply to {person} with: {news} | pass on to {person} that {news}",
    ),
    "message_read": _sides(
        "read my new messages | do i have a message from {person} | what did {person} write | "
        "read the last text from {person} | show unread messages | check my messages | open the message from {person} | "
        "what is new in my messages | did {person} answer | is there any text from {person} | "
        "tell me what {person} sent | any news from {person}",
        "has {person} answered yet | anything new in my inbox | what is {person} saying | "
        "catch me up on the chat with {person} | did i hear back from {person}",
    ),
    "call_make": _sides(
        "call {person} | phone {person} {day} | make a call to {person} | dial the number of {person} | "
        "start a video call with {person} | call {person} back | ring up {person} on speaker | "
        "i want to talk to {person} | get me {person} | put me in touch with {person} | "
        "let me speak with {person} | reach {person} on the phone",
        "get {person} on the line | i need to speak to {person} now | connect me with {person} | "
        "try {person} on the mobile | put me through to {person}",
    ),
    "light_change": _sides(
        "turn on the lights in the {room} | switch the {room} lights off | dim the light in the {room} | "
        "set the {room} light to {level} | lights out in the {room} | make the lamp in the {room} brighter | "
        "lights to {level} | "
        "it is dark in the {room} | more light in the {room} | shut off the lamps in the {room} | "
        "i left the light on in the {room} | the {room} is too bright",
        "it is too dark in the {room} | i can't see anything in the {room} | kill the lamps in the {room} | "
        "brighten up the {room} | nobody is in the {room}, save the bulbs",
    ),
    "heating_change": _sides(
        "set the thermostat to {degrees} | turn up the heating in the {room} | make the {room} warmer | "
        "lower the temperature in the {room} to {degrees} | heat the {room} to {degrees} {day} | "
        "switch off the heating | it is too cold in the {room} | "
        "i am cold | it is much too hot in the {room} | cool the {room} to {degrees} | "
        "i want {degrees} in the {room} | my feet are freezing in the {room}",
        "i am freezing in the {room} | the {room} feels like an oven | keep the {room} at {degrees} | "
        "cool the {room} down | i would like {degrees} in here {day}",
    ),
    "weather_query": _sides(
        "what is the weather in {city} | will it rain {day} | how warm is it in {city} {day} | "
        "weather forecast for {day} | is it going to snow in {city} | what is the temperature in {city} | is it sunny {day} | "
        "do i need a jacket {day} | how is the weather {day} | is there a storm in {city} | "
        "how hot will it be {day} | can i wear shorts in {city} {day}",
        "do i need an umbrella {day} | should i take a coat to {city} | how cold does it get {day} | "
        "any storms coming to {city} | can we have a picnic {day}",
    ),
    "route_find": _sides(
        "how do i get to {place} | navigate to {place} | show me the way to {place} | directions to {city} | "
        "how long does it take to drive to {place} | find a route to {place} in {city} | how far is it to {city} | "
        "where is {place} | bring me to {place} | i want to go to {place} | how is the traffic to {city} | "
        "which train goes to {city} | when do i have to leave for {place}",
        "take me to {place} | which bus goes to {place} | i am lost, bring me to {place} | "
        "is there traffic towards {city} | when would i arrive at {place}",
    ),
    "list_add": _sides(
        "add {item} to my shopping list | put {item} on the list | we need {item} | write {item} on the grocery list | "
        "buy {item} | i have to buy {item} {day} | add {item} and {food} to the list | "
        "{item} is missing | we are out of {item} | get {item} at the store | "
        "there are no {food} in the house | don't forget {item} at the supermarket",
        "we are running out of {item} | there is no {item} left | pick up {item} next time i shop | "
        "note that we lack {item} | the fridge has no {food}, nor {item}",
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
        "water the plants | pay the rent | take my medicine | call the bank | feed the cat | book the train | send the report",
        "renew my passport | defrost the chicken | charge the car | text the plumber | "
        "return the library books | message the school",
    ),
    "event": _sides(
        "lunch | the team meeting | a dentist appointment | the parent evening | yoga class | the budget review",
        "a haircut | the piano lesson | the project kickoff | a birthday party | the car inspection",
    ),
    "news": _sides(
        "i am running late | the meeting is cancelled | dinner is at eight | i am on my way | the package is here",
        "the train is delayed | i can't find my keys | we won the match | supper is in the oven | it rains over here",
    ),
    "music": _sides(
        "jazz | my workout mix | classical piano | nineties rock | rain sounds | the new album",
        "blues | some reggae | film scores | folk ballads | a lullaby",
    ),
    "artist": _sides("mozart | queen | the beatles | miles davis", "vivaldi | nina simone | pink floyd | bob marley"),
    "room": _sides("kitchen | bedroom | living room | hall | office", "bathroom | garage | nursery | dining room | basement"),
    "level": _sides("thirty percent | maximum | 5 | a half", "seventy percent | minimum | 8 | a quarter"),
    "degrees": _sides("21 degrees | nineteen degrees | 68 fahrenheit", "23 degrees | eighteen and a half | 70 fahrenheit"),
    "city": _sides("paris | boston | the mountains | tokyo | oslo", "madrid | chicago | the coast | cairo | dublin"),
    "place": _sides(
        "the airport | the nearest pharmacy | the museum | work | the central station",
        "the stadium | the closest bakery | the harbour | home | the town hall",
    ),
    "item": _sides(
        "milk | coffee | two lemons | toothpaste | dog food | batteries",
        "butter | green tea | a dozen bananas | shampoo | light bulbs | flour",
    ),
    "food": _sides("eggs | pasta | potatoes | cookies", "lentils | noodles | carrots | muffins"),
}

# Clauses before the command that speak of something else: words alone do not give the intent away.
CHATTER = _sides(
    "the music was great yesterday | i just got off the phone with {person} | it is cold outside | my calendar is a mess | "
    "the lights were on all night | i nearly missed my alarm | {person} sent me the list | the timer is still running | "
    "we drove through {city} | i forgot the milk again | {person} and i had a meeting",
    "that song is stuck in my head | {person} keeps texting me | what lovely weather | i overslept | "
    "the lamp is broken again | the drive home took ages | my diary is full | the oven is still warm | i bought too much bread",
)
